import re
from pathlib import Path

import pytest
import torch
from builders import stats_of
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedexp.clients import ClientSettings, Examples, client_app
from fedexp.simulation import SerialGrid
from fedexp.strategies import Scaffold

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_examples_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert float(capsys.readouterr().out.splitlines()[-1]) >= 1


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


FIRST = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}


def scaffold_app():
    def examples(context):
        inputs = torch.arange(8.0).view(4, 2) / 8 + int(context.node_config["partition-id"])
        return (Examples(inputs, torch.tensor([0, 1, 0, 1])),) * 2

    return client_app(lambda context: torch.nn.Linear(2, 2), examples)


def test_what_contributors_are_shown_works():
    blocks = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    names: dict = {}
    strategies = []
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
        strategies.append(names["strategy"])
    rule, damped, *_ = strategies
    results = [
        Scaffold(fraction_evaluate=0.0).start(
            make(scaffold_app(), 3, run_config={"local-steps": 2}),
            ArrayRecord(FIRST),
            num_rounds=2,
        )
        for make in (names["OneWorkerGrid"], SerialGrid)
    ]
    ours, theirs = (result.arrays["weight"].numpy() for result in results)
    assert (ours == theirs).all()
    with names["OneWorkerGrid"](scaffold_app(), 3, run_config={"local-steps": 2}) as grid:
        body = RecordDict({"arrays": ArrayRecord(FIRST), "config": ConfigRecord({"lr": 0.1})})
        asked = [Message(body, node, "train") for node in grid.get_node_ids()]
        late = list(grid.send_and_receive(asked, timeout=1e-9))
    assert all("no reply within" in reply.error.reason for reply in late)
    (own,) = (x for x in damped.extensions if isinstance(x, names["Damped"]))
    halved = own.aggregate(None, stats_of([1.0, 3.0]), {}).stats
    assert halved.update["w"].tolist() == [0.5, 1.5]
    rule.fraction_evaluate = 0.0
    grid = SerialGrid(scaffold_app(), 3, run_config={"local-steps": 2})
    metrics = rule.start(grid, ArrayRecord(FIRST), num_rounds=4).train_metrics_clientapp
    sizes = [metrics[t]["server-step-size"] for t in (1, 2, 3, 4)]
    assert sizes == pytest.approx([2.0, 2 / 2**0.5, 2 / 3**0.5, 1.0])
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    step = names["make"]([weight], ClientSettings(lr=0.5))
    (0.1 * weight**2).sum().backward()
    step.step()
    assert weight.tolist() == [2.5, -1.5]
    assert names["xor"]().train[1].tolist() == [0, 1, 1, 0]


def test_the_map_of_the_house_names_every_room():
    rooms = {path.stem for path in (ROOT / "fedexp").iterdir() if path.suffix == ".py"}
    rooms |= {path.parent.name for path in (ROOT / "fedexp").glob("*/__init__.py")}
    tools = {"__init__", "__main__", "arrays", "extras", "files", "logs", "specs", "threads"}
    tools |= {"terminal", "records", "sums", "foreign_draws", "verdict"}
    table = CONTRIBUTING[: CONTRIBUTING.index("## The way")]
    assert {room for room in rooms - tools if f"`{room}" not in table} == set()


TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS.append(ROOT / "examples" / "README.md")


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_file_that_a_text_links_to_exists(file):
    for path in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", file.read_text(encoding="utf-8")):
        assert (file.parent / path).exists(), path


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_flag_in_the_commands_is_known(file):
    from fedexp import cli
    from fedexp.config import Config

    own = {"config", "resume", "overwrite", "help", "stream", "rounds", "clients", "lr", "version"}
    own |= {"json", "ray", "strict"}  # of other commands
    own |= {flag.lstrip("-") for name in cli.COMMANDS for flag in cli.parser_of(name).flags()}
    own |= {"superlink", "root-certificates", "auth-supernode-private-key", "show"}  # Flower's
    own |= {"federation-config"}
    own |= {"new-key"}  # of `fedexp device`
    text = re.sub(r"python -m (experiments|benchmarks).*", "", file.read_text(encoding="utf-8"))
    for flag in re.findall(r"(?<=\s)`?--([a-z][a-z-]*)", text):
        assert flag in Config.keys().keys() | own, flag


def test_the_table_of_strategies_is_the_table():
    from fedexp.strategies.table import strategies_table

    assert strategies_table() in (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
