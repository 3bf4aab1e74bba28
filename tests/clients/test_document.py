"""The examples of docs/clients.md run, in their order, and what the text says of them holds."""

import re
from pathlib import Path

from fedexp import app
from fedexp.clients.schedules import SCHEDULERS
from fedexp.config import Config

TEXT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")


def test_the_examples_run_and_train(capsys):
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for block in blocks:
        exec(compile(block, "clients.md", "exec"), names)
    adamw, sign, rates, worst, smooth, simulated = capsys.readouterr().out.splitlines()
    assert float(adamw) < 1.5
    assert float(sign) < 1.5
    assert len(set(rates.split())) == 1
    assert 0 <= float(worst) <= 1
    assert 0 < float(smooth) < 1.5
    assert 0 <= float(simulated) <= 1


def test_each_example_is_at_most_five_lines_besides_the_users_own_classes():
    _, *blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for block in blocks:
        own = re.sub(r"(?m)^(class|def) .*\n(?:(?: .*)?\n)*", "", block)
        assert len([line for line in own.splitlines() if line]) <= 5, block


def test_the_commands_are_taken():
    commands = re.findall(r"^fedexp simulate (.*)$", TEXT, re.MULTILINE)
    flags = dict(re.findall(r"--([a-z-]+) '?([^'\n]+)'?$", "\n".join(commands), re.MULTILINE))
    steps = {"learning-rate-exponent", "augmentation"}
    assert flags.keys() == {"local-optimizer", "strategy", "scheduler", "metrics", *steps}
    for command in commands:
        key, value = re.fullmatch(r"--([a-z-]+) '?([^']+)'?", command).groups()
        if "my.module" not in value and key != "strategy":
            config = Config.of({key: value, "strategy": "fedavg"})
            app.check_model(config)


def test_the_short_names_are_known():
    listed = re.search(r"short one \((.*?)\)", TEXT, re.DOTALL)[1]
    for name in re.findall(r"`([a-z-]+)`", listed):
        assert name.replace("-", "") in SCHEDULERS
