import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_examples_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert float(capsys.readouterr().out.splitlines()[-1]) >= 1


TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_file_that_a_text_links_to_exists(file):
    for path in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", file.read_text(encoding="utf-8")):
        assert (file.parent / path).exists(), path


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_flag_in_the_commands_is_known(file):
    from fedexp.config import Config

    own = {"config", "resume", "overwrite", "help", "stream", "rounds", "clients", "lr", "version"}
    own |= {"json", "ray"}  # of other commands
    text = re.sub(r"python -m (experiments|benchmarks).*", "", file.read_text(encoding="utf-8"))
    for flag in re.findall(r"(?<=\s)`?--([a-z][a-z-]*)", text):
        assert flag in Config.keys().keys() | own, flag


def test_the_table_of_strategies_is_the_table():
    from fedexp.strategies.table import STRATEGIES, markdown

    assert markdown() in (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert len(STRATEGIES) == 14  # as the text says
