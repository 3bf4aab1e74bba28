"""The Python door: the command line's results, what objects do, and what is said of mistakes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import nn

import fedexp
from fedexp import cli, extras
from fedexp.clients import DeltaSGD
from fedexp.files import read_model
from fedexp.runs import study as studies
from fedexp.simulation import SerialGrid
from fedexp.strategies import Extrapolation, FedAvg, FedExP, FedOpt, ServerOptimizer

pytestmark = pytest.mark.usefixtures("undrawn", "in_this_process")
SMALL = {"num_server_rounds": 3, "num_clients": 6, "local_steps": 2, "engine": "serial"}
HALF = {**SMALL, "fraction_train": 0.5}
X = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


class Net(nn.Module):
    """Of no arguments."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


def shaped(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


def same(a, b):
    """Whether two models have the same bits."""
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def untimed(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def app_adding(amounts):
    """A ClientApp whose clients add a constant of their own to what they get."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = message.content["arrays"].to_numpy_ndarrays()
        own = amounts[context.node_config["partition-id"]]
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": ArrayRecord([x + own for x in arrays]), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return app


# The command line's results


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """The folder of a run of two strategies and two seeds, as the command line leaves it."""
    out = tmp_path_factory.mktemp("runs") / "r"
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in HALF.items()]
    chosen = ["--strategy", "fedavg,nesterovexp", "--seeds", "0,1"]
    assert not cli.main(["simulate", *chosen, *flags, "--out", str(out)])
    return out


def test_a_run_has_the_bits_and_the_rows_of_the_command_line(by_command):
    run = fedexp.simulate(strategy="nesterovexp", seed=1, **HALF)
    unit = by_command / "nesterovexp" / "seed-1"
    for name, own in zip(("model", "model-mean"), run.arrays, strict=True):
        assert same(own, read_model(unit / f"{name}.safetensors", own))
    lines = (unit / "metrics.jsonl").read_text().splitlines()
    assert untimed(run.metrics) == untimed(map(json.loads, lines))
    told = json.loads((unit / "summary.json").read_text())
    assert untimed([run.summary]) == untimed([told])


def test_a_comparison_has_the_results_of_the_command_line(by_command, tmp_path):
    found = fedexp.compare("fedavg,nesterovexp", seeds=[0, 1], out=tmp_path / "r", **HALF)
    theirs = fedexp.load_runs(by_command)
    assert [(r.strategy, r.seed) for r in found] == [(r.strategy, r.seed) for r in theirs]
    for own, other in zip(found, theirs, strict=True):
        assert untimed(own.metrics) == untimed(other.metrics)
        a, b = own.model().state_dict(), other.model().state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert found.to_latex() == theirs.to_latex()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_server_rounds": np.int64(3), "learning_rate": np.float64(0.1), "seed": np.int32(0)},
        {"num-server-rounds": 3, "data": None, "weighted": np.bool_(True)},
        {"rounds": 3, "lr": 0.1},
        {"local_optimizer": "sgd"},
    ],
)
def test_values_and_names_of_several_kinds_mean_the_same(settings):
    rest = {**HALF, "num_server_rounds": 3 if "local_optimizer" in settings else None}
    run = fedexp.simulate(strategy="fedexp", **{**rest, **settings})
    assert same(run.arrays[0], fedexp.simulate(strategy="fedexp", **HALF).arrays[0])


# Determinism


def test_one_after_the_other_and_in_processes_they_have_the_same_bits(monkeypatch, forked):
    pytest.importorskip("cloudpickle")
    parts = {**HALF, "model": Net, "optimizer": DeltaSGD, "vectorize": "off", "seeds": [0, 1]}
    parts.pop("engine")
    rules = {"a": FedExP(fraction_train=0.5, fraction_evaluate=0.0), "b": FedAdam()}
    parts.pop("fraction_train")
    alone = fedexp.compare(rules, **parts)
    beside = []
    run = studies.run_in_processes
    monkeypatch.setattr(studies, "run_in_processes", lambda *a: beside.append(1) or run(*a))
    monkeypatch.setattr(studies, "_WORTH_PROCESSES", 0.0)
    seen = []
    apart = fedexp.compare(rules, on_round=lambda *told: seen.append(told), **parts)
    assert beside == [1]
    assert {(name, seed, row["round"]) for name, seed, row in seen} == {
        (name, seed, t) for name in "ab" for seed in (0, 1) for t in (1, 2, 3)
    }
    for one, other in zip(alone, apart, strict=True):
        assert same(one.arrays[0], other.arrays[0])
    assert not same(alone[0].arrays[0], alone[1].arrays[0])


def test_on_ray_they_have_the_bits_that_test_engines_compares(monkeypatch):
    pytest.importorskip("ray")
    given = []

    def grid(app, num_nodes, *, run_config, num_workers, vectorize, **rest):
        given.append((num_workers, rest))
        return SerialGrid(app, num_nodes, run_config=run_config, vectorize=vectorize)

    monkeypatch.setattr("fedexp.simulation.ray.grid.RayGrid", grid)
    fedexp.simulate(**{**HALF, "engine": "ray"}, num_workers=3)
    assert given == [(3, {"num_gpus": 0.0, "ray_address": None, "worker_log": False})]


SCRIPT = """
import sys
from torch import nn
import fedexp
import fedexp.checks
from fedexp.runs import parallel, study

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        return self.layer(x.flatten(1))

study._WORTH_PROCESSES, study.cores = 0.0, lambda: 2
parallel.cores = lambda: 1  # more of them: see test_parallel.py
ran, run = [], study.run_in_processes
study.run_in_processes = lambda *args: ran.append(1) or run(*args)
for _ in range(2):
    found = fedexp.compare("fedavg,fedexp+hypersgd", model=Net, metrics={"one": lambda o, t: 1.0},
        rounds=2, clients=4, local_steps=2)
    sums = [float(sum(x.sum() for x in run.arrays[0].values())) for run in found]
    print(len(ran), *sums)
    parallel.find_spec = lambda name: None  # and now without cloudpickle
print("torch._dynamo" in sys.modules)
"""


def test_a_script_without_a_guard_and_with_classes_of_its_own_runs_in_processes(tmp_path):
    pytest.importorskip("cloudpickle")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    beside, alone, compiler = done.stdout.splitlines()
    assert beside.startswith("1 ")  # and the second did not go there
    assert beside == alone
    assert compiler == "False"  # it takes a second to import


# Objects


@pytest.mark.parametrize("model", [Net, lambda: Net(), Net(), shaped])
def test_own_models_are_trained_and_given_back(model):
    run = fedexp.simulate(model=model, **HALF)
    trained = run.model()
    assert not trained.training
    assert same(run.arrays[0], {k: v.numpy() for k, v in trained.state_dict().items()})
    (inputs, targets) = fedexp.datasets.load("digits").test
    accuracy = (trained(inputs).argmax(1) == targets).double().mean()
    assert run.summary["final-accuracy"] == pytest.approx(float(accuracy))


def test_a_module_that_is_given_is_not_changed_and_a_strategy_neither():
    net, rule = Net(), FedExP()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    runs = [fedexp.simulate(model=net, strategy=rule, **SMALL) for _ in range(2)]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert same(runs[0].arrays[0], runs[1].arrays[0])
    assert rule.state == {}


def test_a_rule_is_the_strategy_made_of_it():
    optimizer = ServerOptimizer(step_size=Extrapolation(0.01))
    named = fedexp.simulate(strategy="fedexp(epsilon=0.01)", **HALF)
    for rule in (optimizer, Extrapolation(0.01)):
        assert same(fedexp.simulate(strategy=rule, **HALF).arrays[0], named.arrays[0])


def test_an_own_client_app_with_arrays_is_a_mean_by_hand():
    start = [np.zeros(3), np.ones((2, 2))]
    run = fedexp.simulate(
        strategy=FedAvg(fraction_evaluate=0.0),
        client_app=app_adding([1.0, 2.0, 6.0]),
        initial_model=start,
        evaluate=lambda t, arrays: {"first": float(arrays.to_numpy_ndarrays()[0][0])},
        **{**SMALL, "num_clients": 3},
    )
    assert [row["first"] for row in run.metrics] == [3.0, 6.0, 9.0]  # the mean of 1, 2, 6 a round
    np.testing.assert_allclose(run.arrays[0]["1"], np.full((2, 2), 10.0))
    np.testing.assert_array_equal(start[0], np.zeros(3))
    assert run.summary["problem"] is None
    with pytest.raises(ValueError, match=r"Give one to be filled: model\(Net\(\)\)"):
        run.model()


def test_an_own_client_app_is_scored_by_the_server_where_there_is_data():
    start, strategy = Net(), FlowerFedAvg(min_available_nodes=2)
    parts = {"client_app": named_app(), "model": Net, **SMALL, "num_clients": 2}
    parts |= {"strategy": strategy, "initial_model": start.state_dict()}
    run = fedexp.simulate(dataset="digits", **parts)
    inputs, targets = fedexp.datasets.load("digits").test
    loss = nn.functional.cross_entropy(start(inputs), targets)
    assert run.metrics[-1]["test-loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert same(run.arrays[0], {k: v.numpy() for k, v in start.state_dict().items()})
    assert "test-loss" not in fedexp.simulate(**parts).metrics[-1]


def named_app():
    """Clients that send back what they get, as state dicts."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": ArrayRecord(state), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"eval-loss": 1.0, "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def test_initial_arrays_are_where_training_starts():
    start, tiny = Net(), {**HALF, "learning_rate": 1e-30, "model": Net}
    for given in (start, start.state_dict(), [p.detach() for p in start.parameters()]):
        run = fedexp.simulate(initial_model=given, **tiny)
        assert same(run.arrays[0], {k: v.numpy() for k, v in start.state_dict().items()})


def test_own_data_in_its_forms_is_the_same_data():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcd"))
    parts = {**HALF, "partitioner": "iid"}
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    runs = [
        fedexp.simulate(data=(X, Y), **parts),
        fedexp.simulate(data=(frame, pd.Series(Y)), **parts),
        fedexp.simulate(data=frame.assign(y=Y), target="y", **parts),
        fedexp.simulate(data=pairs, **parts),
        fedexp.simulate(data=fedexp.data((X, Y)), **parts),
        fedexp.simulate(data=frame.assign(y=Y, z="a"), target="y", drop=["z"], **parts),
    ]
    assert all(same(run.arrays[0], runs[0].arrays[0]) for run in runs)


def test_a_path_is_the_data_of_the_command_line(tmp_path):
    pd = pytest.importorskip("pandas")
    path = tmp_path / "a.csv"
    pd.DataFrame(X, columns=list("abcd")).assign(y=Y, h=np.arange(80) % 4).to_csv(path, index=False)
    parts = {"target": "y", "client_from": "column:h", "rounds": 2, "local_steps": 2}
    one = fedexp.simulate(data=path, **parts)
    two = fedexp.simulate(data=str(path), **parts)
    assert same(one.arrays[0], two.arrays[0])
    assert {row["client"] for row in one.clients} == {"0", "1", "2", "3"}


def test_own_metrics_are_scored_on_the_server_and_at_clients():
    settings = {**SMALL, "fraction_evaluate": 1.0, "metrics": {"hits": lambda o, t: float(len(t))}}
    run = fedexp.simulate(**settings)
    assert run.metrics[-1]["test-hits"] == len(fedexp.datasets.load("digits").test[1])
    last = [row for row in run.clients if row["round"] == 3]
    assert len(last) == 6
    assert all(row["hits"] == row["examples"] for row in last)


# Going on, stopping, and what ends a run in its middle


def test_rounds_in_parts_are_those_of_a_whole_run():
    whole = fedexp.simulate(strategy="nesterovexp+hypersgd", **{**HALF, "num_server_rounds": 5})
    with fedexp.Simulation(strategy="nesterovexp+hypersgd", **HALF) as sim:
        sim.run(rounds=2)
        sim.close()  # the clients' memory is kept
        run = sim.run(rounds=3)
    assert same(run.arrays[0], whole.arrays[0])
    assert untimed(run.metrics) == untimed(whole.metrics)


def ends(at):
    """An evaluation that is interrupted when it is called the ``at``-th time."""
    calls = iter(range(1, 99))

    def evaluate(server_round, arrays):
        if next(calls) == at:
            raise KeyboardInterrupt
        return {"test-x": 1.0}

    return evaluate


@pytest.mark.parametrize("strategy", ["nesterovexp", "fedadam+hypersgd"])
def test_after_an_interruption_the_whole_rounds_are_kept_and_it_goes_on(strategy, tmp_path):
    whole = fedexp.simulate(strategy=strategy, evaluate=ends(0), **HALF)
    sim = fedexp.Simulation(strategy=strategy, evaluate=ends(4), out=tmp_path / "r", **HALF)
    with pytest.raises(KeyboardInterrupt):
        sim.run()  # in the second round, whose server step is done
    assert [row["round"] for row in sim.result.metrics] == [1]
    run = sim.run()
    assert same(run.arrays[0], whole.arrays[0])
    (unit,) = (tmp_path / "r").glob("*/metrics.jsonl")
    rounds = [json.loads(line)["round"] for line in unit.read_text().splitlines()]
    assert rounds == [1, 2, 3]


@pytest.mark.parametrize("call", ["on_round", "stop"])
def test_what_a_callback_raises_arrives_and_the_round_is_kept(call):
    def fails(row):
        raise LookupError(row["round"])

    sim = fedexp.Simulation(**HALF)
    with pytest.raises(LookupError, match="1"):
        sim.run(**{call: fails})
    assert len(sim.result.metrics) == 1
    assert same(sim.run().arrays[0], fedexp.simulate(**{**HALF, "strategy": "fedexp"}).arrays[0])


def test_a_run_stops_where_it_is_told_to_and_that_is_no_failure():
    seen = []
    run = fedexp.simulate(on_round=seen.append, stop=lambda row: row["round"] == 2, **HALF)
    assert [row["round"] for row in seen] == [1, 2]
    assert (run.summary["ended"], run.summary["problem"]) == ("finished", None)
    found = fedexp.compare("fedavg,fedexp", stop=lambda row: row["round"] == 2, **HALF)
    assert [len(run.metrics) for run in found] == [2, 2]


def test_a_run_that_failed_never_says_that_it_succeeded():
    broken = {**HALF, "learning_rate": 1e30}
    with pytest.raises(RuntimeError, match=r"no round of 3 succeeded: .*smaller learning rate"):
        fedexp.simulate(**broken)
    with pytest.raises(RuntimeError, match="fedavg: no round"):
        fedexp.compare("fedavg", **broken)
    one = {"client_app": one_fails(), "initial_model": [np.zeros(2)], "rounds": 2, "clients": 2}
    with pytest.warns(RuntimeWarning, match="never contributed: .*ZeroDivisionError") as warned:
        run = fedexp.simulate(strategy=FedAvg(fraction_evaluate=0.0), engine="serial", **one)
    assert warned[0].filename == __file__
    assert run.summary["ended"] == "failed"


def one_fails():
    app = app_adding([1.0, 1.0])
    inner = ClientApp()

    @inner.train()
    def train(message, context):
        1 / context.node_config["partition-id"]
        return app(message, context)

    return inner


# On disk


def test_a_run_on_disk_goes_on_and_is_read_back(tmp_path):
    parts = {"strategy": FedExP(fraction_train=0.5), "model": Net, **SMALL, "out": tmp_path / "r"}
    first = fedexp.simulate(**parts)
    assert first.folder.parent == tmp_path / "r"
    with pytest.raises(ValueError, match="exists already"):
        fedexp.simulate(**parts)
    more = fedexp.simulate(**{**parts, "num_server_rounds": 5, "resume": True})
    assert len(more.metrics) == 5
    ended = (more.folder / "summary.json").read_bytes()
    (tmp_path / "r" / "partition.json").write_text("[]")
    done = fedexp.simulate(**{**parts, "num_server_rounds": 5, "resume": True})
    assert (more.folder / "summary.json").read_bytes() == ended
    assert untimed(done.metrics) == untimed(more.metrics)
    assert same(done.arrays[0], more.arrays[0])
    read = fedexp.load_run(tmp_path / "r")
    assert untimed(read.metrics) == untimed(more.metrics)
    for name in ("config.toml", "environment.json"):  # refused at once, and the folder is free
        sound = (tmp_path / "r" / name).read_bytes()
        (tmp_path / "r" / name).write_bytes(b"\xff")
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"{name}: (is damaged|cannot be read)"):
                fedexp.simulate(**{**parts, "num_server_rounds": 6, "resume": True})
        (tmp_path / "r" / name).write_bytes(sound)
    with pytest.raises(ValueError, match=r"model\(Net\(\)\)"):
        read.model()
    state = read.model(Net()).state_dict()
    assert same(more.arrays[0], {k: v.numpy() for k, v in state.items()})


def test_the_model_of_a_run_on_own_data_is_known_without_the_data(tmp_path):
    run = fedexp.simulate(data=(X, Y), out=tmp_path / "r", **HALF)
    state = fedexp.load_run(tmp_path / "r").model(average=True).state_dict()
    assert same(run.arrays[1], {k: v.numpy() for k, v in state.items()})
    about = json.loads((run.folder / "unit.json").read_text())
    assert about["dataset"] == "own data"


def test_settings_of_a_sweep_are_those_of_the_models_read_back(tmp_path):
    sweep = {"model": ["linear", "mlp"], "lr": [0.1]}
    found = fedexp.compare("fedavg", sweep=sweep, out=tmp_path / "r", **HALF)
    kinds = [len(list(run.model().parameters())) for run in fedexp.load_runs(tmp_path / "r")]
    assert sorted(kinds) == [2, 4]
    assert kinds == [len(list(run.model().parameters())) for run in found]


def test_where_no_run_is_and_where_several_are_it_is_said(tmp_path, by_command):
    with pytest.raises(ValueError, match=r"holds no run"):
        fedexp.load_run(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match=r"holds several\. Name strategy and seed of: fedavg, seed 0"
    ):
        fedexp.load_run(by_command)
    assert fedexp.load_run(by_command, "nesterovexp", 1).seed == 1


# Tables


def test_a_table_has_means_over_seeds_by_hand():
    pytest.importorskip("pandas")
    found = fedexp.compare({"a": "fedavg", "b": FedExP()}, seeds=[0, 1], **SMALL)
    table = found.table()
    assert list(table.index) == ["a", "b"]
    ends = [run.metrics[-1]["test-accuracy"] for run in found["b"]]
    assert table.loc["b", "final-accuracy"] == pytest.approx(np.mean(ends))
    assert table.loc["b", "final-accuracy-std"] == pytest.approx(np.std(ends, ddof=1))
    assert table.loc["b", "seeds"] == 2
    assert not any(table[column].isna().all() for column in table)
    assert len(found.frame()) == 2 * 2 * 3
    assert "<td>a</td>" in found._repr_html_()
    assert repr(found).startswith("| Strategy |")


def test_what_a_run_is_shows_its_score():
    run = fedexp.simulate(strategy="fedavg", **HALF)
    assert repr(run) == (
        f"Result(fedavg, seed=0, num-rounds=3, final-accuracy={run.summary['final-accuracy']:.4g}, "
        "ended=finished)"
    )
    regression = fedexp.simulate(data=(X, X[:, 0]), strategy="fedavg", **HALF)
    assert f"final-test-loss={regression.summary['final-test-loss']:.4g}" in repr(regression)


def test_a_figure_is_written_and_shown(tmp_path, drawn):
    pytest.importorskip("matplotlib")
    figure = fedexp.simulate(**HALF).plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().lstrip().startswith("<?xml")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_run_on_disk_needs_matplotlib_before_round_one(tmp_path, monkeypatch):
    find_spec = extras.find_spec
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    line = r"matplotlib is not installed. Run: pip install 'fedexp\[simulation\]'"
    with pytest.raises(ModuleNotFoundError, match=line):
        fedexp.Simulation(out=tmp_path / "a", **HALF)
    with pytest.raises(ModuleNotFoundError, match=line):
        fedexp.compare("fedavg, fedexp", out=tmp_path / "a", **HALF)
    assert not (tmp_path / "a").exists()


# Mistakes

LOADER = torch.utils.data.DataLoader([(X[0], 0)])
MISTAKES = [
    ({"num_client": 5}, "num_client): is not known. Did you mean 'num_clients'?"),
    ({"strateg": "fedexp"}, "Did you mean 'strategy'?"),
    ({"num_clients": 5, "clients": 5}, "num_clients is given twice. Leave one out."),
    ({"strategy": FedExP}, "strategy=FedExP: is a class. Give one made of it: FedExP()."),
    ({"strategy": 3}, "must be a Flower strategy, a ServerOptimizer"),
    ({"strategy": None}, "give one"),
    ({"strategy": ["fedavg", "fedexp"]}, "Use fedexp.compare for several."),
    ({"strategy": "fedavg,fedexp"}, "Use fedexp.compare for several."),
    ({"strategy": FedExP(), "fraction_train": 0.5}, "Give it there: FedExP(fraction_train=0.5)."),
    ({"model": 3}, "model=int: must be a name, a module, or a class or function of one."),
    ({"model": nn.Linear(3, 4)}, "model=Linear: forward with inputs"),
    ({"optimizer": torch.optim.AdamW(Net().parameters())}, "not AdamW(...)"),
    ({"loss": "mse"}, "loss=str: must be a function (outputs, targets) -> scalar."),
    ({"metrics": len}, "must be functions by name, such as {'f1': f1}."),
    ({"data": LOADER}, "Give its dataset: loader.dataset."),
    ({"data": (X, Y), "dataset": "digits"}, "data is given too. Leave one out."),
    ({"data": (X, Y), "target": "y"}, "arrays has no use for it. Leave it out."),
    ({"data": fedexp.data((X, Y)), "impute": "mean"}, "a Dataset has no use for it."),
    ({"client_app": ClientApp(), "model": Net}, "say num_clients"),
    ({"client_app": ClientApp(), "clients": 2}, "the first model is needed. Give model"),
    ({"client_app": len, "clients": 2, "model": Net}, "must be a ClientApp of Flower's."),
    (
        {"client_app": ClientApp(client_fn=lambda context: None), "clients": 2, "model": Net},
        "@app.train() and @app.evaluate()",
    ),
    ({"initial_model": 3}, "must be a file, a module, its state_dict()"),
    ({"initial_model": Net()}, "initial_model: holds another model"),
    ({"on_round": 3}, "run(on_round=3): must be a function."),
    ({"learning_rate": -1}, "should be greater than 0"),
    ({"evaluate": 3}, "evaluate=int: must be a function (server_round, arrays) -> metrics."),
    ({"log": "wandb"}, "(log='wandb'): nothing is written without a folder. Give out."),
    ({"log": "wandb", "out": "r"}, "unknown 'wandb'. Known: tensorboard, mlflow."),
    ({"name": "a"}, "(name='a'): nothing is written without a folder. Give out."),
    ({"resume": True}, "(resume=True): nothing is written without a folder. Give out."),
    ({"resume": "base"}, "(resume='base'): must be True or False. Name the folder with out."),
    ({"resume": "base", "out": "r"}, "(resume='base'): must be True or False."),
    ({"select": "best-accuracy"}, "there is no sweep"),
    ({"target": "y"}, "no chosen dataset reads target"),
    (
        {"dataset": fedexp.data((X, Y))},
        "(dataset=Dataset): must be a name. Give an object",
    ),
    ({"dataset": X}, "(dataset=ndarray): must be a name. Give an object as data="),
    ({"average": np.arange(5000)}, "Config(average=array([   0,    1,    2,"),
    ({"partitioner": {"a": X}}, "Config(partitioner={'a': array([["),
    ({"seeds": X}, "Config(seeds=array([["),
    ({"alpha": torch.zeros(99, 99)}, "Config(alpha=tensor([[0., 0.,"),
    ({"model": X}, "model=ndarray: must be a name, a module, or a class or function of one."),
    ({"model": [1]}, "model=list: must be a name, a module, or a class or function of one."),
    ({"scheduler": X}, "scheduler=ndarray: must be text"),
    ({"optimizer": X}, "optimizer=ndarray): must be text"),
    ({"stop": X}, "run(stop=array([["),
]


@pytest.mark.parametrize(("parts", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_line(parts, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        fedexp.simulate(**parts)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("strategies", "parts", "said"),
    [
        ([], {}, "there are none"),
        ([FedAvg(), FedAvg()], {}, "two are called the same. Give a dict of names."),
        ([FedAvg], {}, "strategy=FedAvg: is a class"),
        ({"a": "fedavg,fedexp"}, {}, "is several. Give each a name."),
        ("fedavg", {"seeds": 3}, "compare(seeds=3): must be several. Give range(3) or [0, 1]."),
        ("fedavg", {"seeds": [0], "seed": 1}, "seeds are given too. Leave one out."),
        ("fedavg", {"seeds": len}, "compare(seeds=<built-in function len>): must be several."),
        ("fedavg", {"log": "tensorboard"}, "compare(log='tensorboard'): nothing is written"),
        ("fedavg", {"resume": "base"}, "compare(resume='base'): must be True or False."),
        ("fedavg", {"resume": True}, "compare(resume=True): nothing is written"),
        ("fedavg", {"stop": X}, "run(stop=array([["),
        ("fedavg", {"seed_s": 1}, "compare(seed_s): is not known. Did you mean 'seeds'?"),
        ("fedavg", {"sweep": {"lr": [0.1]}, "select": "f1"}, "must be one of best-accuracy"),
        ([FedAvg()], {"fraction_train": 0.5}, "Give it there: FedAvg(fraction_train=0.5)."),
    ],
)
def test_a_mistake_in_a_comparison_is_one_line(strategies, parts, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        fedexp.compare(strategies, **parts)


def test_going_on_has_its_mistakes_too():
    sim = fedexp.Simulation(**HALF)
    with pytest.raises(ValueError, match="no round is done"):
        _ = sim.result
    sim.run()
    with pytest.raises(ValueError, match=r"must be at least 1. 3 rounds are done"):
        sim.run(rounds=0)
    assert len(sim.run().metrics) == 3  # as many as are left
    with pytest.raises(ValueError, match=r"belongs to run. Write run\(stop=...\)"):
        fedexp.Simulation(stop=len)


def test_importing_takes_none_of_the_heavy_libraries():
    code = "import fedexp, sys; print({'torch', 'flwr', 'pandas', 'ray'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_a_strategy_moves_the_arrays_that_it_names_and_no_others():
    names = ["3.weight", "3.bias"]
    parts = {"num_clients": 4, "engine": "serial"}
    frozen = FedOpt(fraction_train=1.0, trainable=names, buffers="keep")
    ends = [fedexp.simulate(strategy=frozen, **parts, num_server_rounds=n) for n in (1, 2)]
    one, two = (end.model().state_dict() for end in ends)
    assert [name for name in one if not one[name].equal(two[name])] == names
    with pytest.raises(ValueError, match=r"trainable=\['nope'\]\): the model has no such arrays"):
        fedexp.simulate(strategy=FedOpt(fraction_train=1.0, trainable=["nope"]), **parts)
