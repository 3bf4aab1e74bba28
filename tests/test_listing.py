"""``fedexp list``: names, lines and arguments, for people and for programs."""

import json

import pytest

from fedexp import cli, listing
from fedexp.strategies import STRATEGIES


def printed(capsys, *words):
    cli.main(["list", *words])
    return capsys.readouterr().out


def test_without_a_kind_all_names_are_listed(capsys):
    text = printed(capsys)
    for kind in listing.LISTED:
        assert f"{kind}: {', '.join(listing.names(kind))}\n" in text


@pytest.mark.parametrize("kind", listing.LISTED)
def test_every_name_has_a_line_which_a_pipe_gets_unfolded(kind, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(capsys, kind).splitlines()
    for name, about in listing.LISTED[kind]().items():
        assert about.line
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.split(maxsplit=1)[1] == about.line


def test_every_own_argument_of_a_strategy_is_listed_with_the_default_it_has():
    """Read off the objects: those made by default have the values that the list promises."""
    from inspect import signature

    found = {name: choice.arguments for name, choice in listing.LISTED["strategies"]().items()}
    assert found["fedadam"] == {
        **{"eta": 0.1, "eta-l": 0.1, "beta-1": 0.9, "beta-2": 0.99, "tau": 0.001},
        "flower-compatible": False,
    }
    assert found["fedavgm"]["server-momentum"] == 0.9  # the row's, not Flower's 0.0
    assert found["fedproxexp"]["epsilon"] == 0.001  # of the class that it derives from
    for key, row in STRATEGIES.items():
        own = {
            p.name for p in signature(row.strategy).parameters.values() if p.kind == p.KEYWORD_ONLY
        }
        assert {name.replace("_", "-") for name in own} <= found[key].keys()


def test_the_arguments_of_flowers_fedavg_are_listed_once(capsys):
    from flwr.serverapp.strategy import FedAvg

    text = printed(capsys, "strategies")
    assert text.count("weighted-by-key=num-examples") == 1
    common = listing.common_arguments()
    assert {"fraction-train", "min-train-nodes", "relaxation", "drop-beyond"} <= common.keys()
    assert common["weighted-by-key"] == FedAvg().weighted_by_key
    assert common["fraction-evaluate"] is None  # that of --fraction-evaluate
    assert not {"train-metrics-aggr-fn", "optimizer", "client-config"} & common.keys()


def test_every_listed_argument_is_one_that_a_strategy_takes_with_the_value_that_a_run_gives_it():
    from fedexp.config import Config
    from fedexp.strategy_factory import strategy_of

    positive = ("drop_beyond", "max_step_size", "relaxation", "clip", "smoothing")
    run = Config(
        **dict.fromkeys(positive, 0.5)
        | {"drop_beyond": 5.0, "clip_quantile": 0.5, "private_layers": "x", "min_replies": 1}
    ).values()
    for key, choice in listing.LISTED["strategies"]().items():
        for name, value in (choice.arguments | listing.common_arguments()).items():
            written = {None: run.get(name), "all": 7}.get(value, value)
            strategy_of(Config(), f"{key}({name}={str(written).lower()})", 7)
    made = strategy_of(Config(fraction_evaluate=1.0), "fedavg", 7)
    assert (made.min_train_nodes, made.min_evaluate_nodes, made.min_available_nodes) == (1, 1, 7)


def test_json_holds_the_same(capsys):
    found = json.loads(printed(capsys, "--json"))
    assert found.keys() == {*listing.LISTED, "common-arguments"}
    assert found["strategies"]["fedyogi"]["arguments"]["eta"] == 0.01
    assert json.loads(printed(capsys, "models", "--json")).keys() == {"models"}


def test_sixty_columns_are_enough(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for kind in ((), *((kind,) for kind in listing.LISTED)):
        assert max(map(len, printed(capsys, *kind).splitlines())) <= 60


def test_a_scheduler_needs_what_the_list_leaves_open_and_nothing_else():
    from fedexp.clients.schedules import schedule

    for name, choice in listing.LISTED["schedulers"]().items():
        if "..." in choice.arguments.values():
            with pytest.raises(ValueError, match="needs"):
                schedule(name, 10, 0.1)
        else:
            schedule(name, 10, 0.1)


def test_a_listed_metric_is_one_that_a_run_takes():
    from fedexp.clients.metrics import named_metrics

    for name, choice in listing.LISTED["metrics"]().items():
        if choice.line != "always reported":
            named_metrics(name)
