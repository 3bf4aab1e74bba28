"""``examples/mistakes.py``: what a new user's mistakes are answered with."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "examples" / "mistakes.py"
spec = importlib.util.spec_from_file_location("mistakes", PATH)
mistakes = importlib.util.module_from_spec(spec)
sys.modules["mistakes"] = mistakes
spec.loader.exec_module(mistakes)


@pytest.fixture(scope="module", autouse=True)
def desk():
    with mistakes.desk():
        yield


def test_there_are_thirty_of_them():
    assert len(mistakes.MISTAKES) >= 30


@pytest.mark.parametrize("mistake", mistakes.MISTAKES, ids=lambda mistake: mistake.command)
def test_it_is_one_line_with_the_right_exit_code_and_the_remedy(mistake):
    code, said = mistakes.answer(mistake.command)
    assert mistake.remedy in said
    assert said.startswith("fedexp: error: ")
    assert said.count("\n") == 1
    assert code == mistake.code


def test_no_file_of_the_users_is_lost():
    assert Path("thesis/chapter-1.txt").read_text() == "Do not lose me.\n"
