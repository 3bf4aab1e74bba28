"""The example and the commands of the document run, and give what it says."""

import re
import shlex
from pathlib import Path

import pytest

from fedexp import app
from fedexp.config import Config

TEXT = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")


def test_the_example_gives_the_distance_that_it_names(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(block, "augmentation.md", "exec"), {})
    said, printed = re.search(r"# (0[.][0-9]+)$", block.strip()), capsys.readouterr().out
    assert said
    assert float(printed.splitlines()[-1]) == pytest.approx(float(said[1]), abs=5e-5)
    assert printed.startswith("Guaranteed")


def test_the_commands_are_taken():
    text = TEXT.replace("\\\n", "")  # a command of several lines
    commands = re.findall(r"^fedexp simulate (.*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        flags = {
            flag.removeprefix("--"): value
            for flag, value in zip(words[::2], words[1::2], strict=True)
        }
        if "data" in flags:  # which the experiment leaves
            rounds = {"num-server-rounds": flags.pop("rounds")}
            assert Config.of(flags | rounds).clients.rates() == [0.25]
        else:
            app.check_model(Config.of(flags | {"strategy": "fedavg"}))
