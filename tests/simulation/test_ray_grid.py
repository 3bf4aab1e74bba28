"""One Ray for all of these; what starts Ray itself is in test_ray_processes.py."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from builders import content, partition, record
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from offspring import descendants, resident_mb
from torch import nn

from fedexp.clients import Examples, client_app, module_arrays
from fedexp.clients.secure import squared_norm_mod
from fedexp.records import from_record, to_record
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedAvg, FedExP, legacy
from fedexp.strategies.sampling import sample

ray = pytest.importorskip("ray")
from fedexp.simulation.jobs import ClientJob  # noqa: E402
from fedexp.simulation.ray import grid as ray_grid  # noqa: E402
from fedexp.simulation.ray import workers as ray_workers  # noqa: E402
from fedexp.simulation.ray.grid import RayGrid  # noqa: E402

pytestmark = pytest.mark.deploy

NUM_NODES = 1_000_000
MODEL = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "n": np.asarray(0)}
CONFIG = {"seed": 3, "local-steps": 3, "batch-size": 4, "learning-rate": 0.1}


@pytest.fixture(scope="module", autouse=True)
def idle(one_ray):
    """Workers without work; they know what this module defines."""
    for module in sys.modules[__name__], builders:
        ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import tests
    yield one_ray
    for module in sys.modules[__name__], builders:
        ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def new_processes(idle):
    """None that an earlier grid has used is there."""
    used = idle.copy()
    idle.clear()
    yield
    idle.extend(used)


def drift(message, context):
    """Another update for every client and round; a count in the state; trouble on request."""
    p, config = partition(context), message.content["config"]
    if p == config.get("raises"):
        raise RuntimeError("no battery")
    if p == config.get("exits"):
        raise {"sys": SystemExit(3), "kbd": KeyboardInterrupt(), "gen": GeneratorExit()}[
            config["how"]
        ]
    if p == config.get("hangs"):
        time.sleep(600)
    if p == config.get("dies") and not Path(config.get("once", "")).is_file():
        if "once" in config:
            Path(config["once"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    rng = np.random.default_rng([p, config.get("server-round", 0)])
    sent = from_record(message.content["arrays"])
    count = int(context.state["count"]["n"]) + 1 if "count" in context.state else 1
    context.state["count"] = ConfigRecord({"n": count, "pid": os.getpid()})
    context.state["arrays"] = record({"seen": np.full(3, float(count))})
    arrays = {k: np.asarray(x + rng.normal(size=x.shape)).astype(x.dtype) for k, x in sent.items()}
    return content(arrays, num_examples=1 + p % 7, count=count, node=p)


def app_of(train):
    app = ClientApp()
    app.train()(lambda message, context: Message(train(message, context), reply_to=message))
    return app


@pytest.fixture(scope="module")
def grid(idle):
    """A million clients on two workers."""
    with RayGrid(app_of(drift), NUM_NODES, num_workers=2) as grid:
        yield grid


def serial():
    return SerialGrid(app_of(drift), NUM_NODES)


def start(strategy, grid, rounds=3, **config):
    random.seed(0)  # Flower draws nodes with Python's global generator
    options = {"num_rounds": rounds, "train_config": ConfigRecord(config)}
    return strategy.start(grid, record(MODEL), **options)


def same_bits(a, b):
    x, y = from_record(a.arrays), from_record(b.arrays)
    assert list(x) == list(y)
    for name in x:
        np.testing.assert_array_equal(x[name], y[name])


def ask(grid, nodes, timeout=None, **config):
    """Replies to train messages with one content, by node."""
    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord(config)})
    messages = [Message(body, node, "train") for node in nodes]
    return list(grid.send_and_receive(messages, timeout=timeout))


OURS = {"fraction_train": 1e-5, "fraction_evaluate": 0.0, "seed": 1}
FLOWERS = {"fraction_train": 1e-5, "fraction_evaluate": 0.0}


@pytest.mark.parametrize("strategy", [FlowerFedAvg, FlowerFedAdam])
def test_flowers_strategies_give_the_arrays_of_the_serial_grid(grid, strategy):
    model = {"w": MODEL["w"]}  # FedAdam moves floats only
    results = []
    for one in grid, serial():
        random.seed(0)
        results.append(strategy(**FLOWERS).start(one, record(model), num_rounds=3))
    same_bits(*results)


@pytest.mark.parametrize("robust", [False, True])
def test_our_merged_rounds_have_the_bits_of_the_serial_grid(grid, robust):
    grid.forget()
    results = [start(FedExP(robust=robust, **OURS), one) for one in (grid, serial())]
    same_bits(*results)
    ours, theirs = (r.train_metrics_clientapp for r in results)
    assert {t: dict(m) for t, m in ours.items()} == {t: dict(m) for t, m in theirs.items()}


def test_robust_rounds_have_the_same_bits_for_another_number_of_workers():
    with RayGrid(app_of(drift), NUM_NODES, num_workers=3) as more:
        strategy = FedExP(robust=True, **OURS)
        results = [start(strategy, more), start(FedExP(robust=True, **OURS), serial())]
    assert strategy._merge_by() is not None
    same_bits(*results)


def test_replies_come_in_the_order_of_the_messages(grid):
    nodes = [50, 3, 7, 999_999, 2, 11, 12]
    replies = ask(grid, nodes)
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert [reply.content["metrics"]["node"] for reply in replies] == [n - 2 for n in nodes]


def test_workers_of_clients_without_pytorch_do_without_it(new_processes):
    def train(message, context):
        import sys

        context.state["seen"] = ConfigRecord({"torch": "torch" in sys.modules})
        return content({"w": np.ones(1)})

    with RayGrid(app_of(train), 2, num_workers=1) as own:
        FedExP(fraction_evaluate=0.0).start(own, record({"w": np.zeros(1)}), num_rounds=1)
        assert own.states[2]["seen"]["torch"] is False
    command = (
        "import sys, fedexp.simulation; fedexp.simulation.RayGrid; print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", command], text=True).strip() == "False"


def test_state_survives_rounds_whatever_worker_a_client_is_on(grid):
    nodes = [100, 101, 102, 103]
    counts = [[r.content["metrics"]["count"] for r in ask(grid, nodes)] for _ in range(2)]
    moved = [r.content["metrics"]["count"] for r in ask(grid, [*range(200, 209), 100, 101])]
    assert counts == [[1] * 4, [2] * 4]
    assert moved[-2:] == [3, 3]
    np.testing.assert_array_equal(grid.states[100]["arrays"]["seen"], [3, 3, 3])


def test_a_client_that_raises_is_one_error_reply(grid):
    replies = ask(grid, range(2, 10), raises=3)
    assert [reply.has_error() for reply in replies] == [i == 3 for i in range(8)]
    assert "RuntimeError: no battery" in replies[3].error.reason


@pytest.mark.parametrize("how", ["sys", "kbd", "gen"])
def test_a_client_that_ends_itself_is_one_error_reply_and_its_worker_lives(grid, how, logged):
    replies = ask(grid, range(2, 10), exits=3, how=how)
    assert [reply.has_error() for reply in replies] == [i == 3 for i in range(8)]
    result = start(FedAvg(**OURS), grid, rounds=1, exits=_sampled(1), how=how)
    assert result.train_metrics_clientapp[1]["num-failures"] == 1
    assert not any("is replaced" in line for line in logged)


def test_nothing_is_pushed_and_pulled_without_a_fault(grid):
    assert grid.push_messages([]) == []
    assert list(grid.pull_messages([])) == []
    assert list(grid.send_and_receive([])) == []


def test_several_messages_to_one_node_run_one_after_the_other(grid):
    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord()})
    sent = [Message(body, 700, "train") for _ in range(3)]
    counts = {
        r.metadata.reply_to_message_id: r.content["metrics"]["count"]
        for r in grid.pull_messages(grid.push_messages(sent))
    }
    assert [counts[m.metadata.message_id] for m in sent] == [1, 2, 3]
    assert grid.states[700]["count"]["n"] == 3


def test_a_worker_killed_in_a_round_is_replaced_and_no_bit_changes(grid, tmp_path, logged):
    once = str(tmp_path / "once")
    results = [
        start(FedExP(**OURS), grid, dies=_sampled(1), once=once),
        start(FedExP(**OURS), serial()),
    ]
    assert Path(once).is_file()
    assert sum("is replaced (its worker process ended" in line for line in logged) == 1
    same_bits(*results)
    assert all(m["num-failures"] == 0 for m in results[0].train_metrics_clientapp.values())


def _sampled(server_round, num_nodes=NUM_NODES, fraction=OURS["fraction_train"], seed=OURS["seed"]):
    """A partition that our strategies train in a round."""
    nodes = range(2, 2 + num_nodes)
    size = int(num_nodes * fraction + 1e-9)
    return sample(nodes, size, seed=seed, server_round=server_round, use="train")[-2] - 2


def test_a_client_that_kills_every_worker_is_one_error_reply(grid):
    replies = ask(grid, range(2, 10), dies=7)
    assert [reply.has_error() for reply in replies] == [i == 7 for i in range(8)]
    reason = replies[7].error.reason
    assert reason.startswith("its worker process ended whenever it ran. If memory ran out: Use a ")
    assert not any(reply.has_error() for reply in ask(grid, range(2, 10)))


def test_a_worker_that_ray_ends_as_memory_runs_out_is_replaced(grid, monkeypatch, logged):
    """As it ended for good: what Ray raises is no RayActorError."""
    get, errors = ray.get, iter([ray.exceptions.OutOfMemoryError("memory is low")])

    def low_on_memory(*args, **kwargs):
        if error := next(errors, None):
            raise error
        return get(*args, **kwargs)

    monkeypatch.setattr("fedexp.simulation.ray.workers.ray.get", low_on_memory)
    assert not any(reply.has_error() for reply in ask(grid, range(2, 10)))
    assert sum("is replaced (its worker process ended" in line for line in logged) == 1


def test_a_client_that_hangs_is_one_error_reply_and_its_worker_is_recycled(grid):
    before = _pids(ask(grid, range(2, 10)), grid)
    start = time.monotonic()
    replies = ask(grid, range(2, 10), timeout=12, hangs=5)
    assert time.monotonic() - start < 60
    assert [reply.has_error() for reply in replies] == [i == 5 for i in range(8)]
    assert replies[5].error.reason == "no reply within 12 s"
    assert len(before - _pids(ask(grid, range(2, 10)), grid)) == 1


def _pids(replies, grid):
    return {grid.states[reply.metadata.src_node_id]["count"]["pid"] for reply in replies}


def test_rounds_of_a_thousand_among_a_million_clients_keep_memory_flat(grid):
    strategy = FedAvg(fraction_train=1e-3, fraction_evaluate=0.0, seed=5)
    assert grid.num_nodes == NUM_NODES
    levels = []
    for _ in range(5):
        start(strategy, grid, rounds=1)
        grid.forget()
        levels.append(resident_mb([os.getpid(), *descendants(os.getpid())]))
    assert levels[-1] - levels[1] < 30, levels


def test_a_grid_refuses_a_node_that_it_does_not_have(grid):
    with pytest.raises(ValueError, match="this grid's nodes are 2 to 1000001"):
        ask(grid, [1])


def test_large_contents_go_through_the_object_store_and_change_no_bit(grid, monkeypatch):
    monkeypatch.setattr(ray_workers, "_INLINE_CONTENTS", 0)
    same_bits(*(start(FedExP(**OURS), one) for one in (grid, serial())))


class Doubler(NumPyClient):
    """Of Flower's older API."""

    def fit(self, parameters, config):
        return [x * 2 for x in parameters], 1, {}


def test_a_legacy_server_app_and_client_run_from_their_many_threads():
    def server_fn(context):
        strategy = LegacyFedAvg(
            fraction_evaluate=0.0,
            min_available_clients=4,
            initial_parameters=ndarrays_to_parameters([np.ones(3)]),
            evaluate_fn=lambda r, arrays, config: seen.append(arrays[0].tolist()),
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    seen = []
    client = ClientApp(client_fn=lambda context: Doubler().to_client())
    with RayGrid(client, 4, num_workers=1) as grid:
        ServerApp(server_fn=server_fn)(grid, Context(1, 1, {}, RecordDict(), {}))
    assert seen == [[1.0] * 3, [2.0] * 3, [4.0] * 3]


class OneOf(NumPyClient):
    """Counts from 1 to 4 examples; the client of partition 4 drops out."""

    def __init__(self, p):
        self.p = p

    def fit(self, parameters, config):
        if self.p == 4:
            raise RuntimeError("no battery")
        return [x + 2 * np.eye(4)[self.p] for x in parameters], 1 + self.p, {}


def test_fedexp_under_secure_aggregation_steps_as_without_when_a_client_drops_out():
    steps, models = [], []
    for mods, secure in [([secaggplus_mod, squared_norm_mod], True), ([], False)]:
        app = ClientApp(
            client_fn=lambda context: OneOf(int(context.node_config["partition-id"])).to_client(),
            mods=mods,
        )
        strategy = legacy.FedExP(
            secure=secure,
            fraction_evaluate=0.0,
            min_fit_clients=5,
            min_available_clients=5,
            initial_parameters=ndarrays_to_parameters([np.ones(4)]),
            evaluate_fn=lambda r, arrays, config: models.append(arrays[0]),
        )
        config = ServerConfig(num_rounds=1)
        context = LegacyContext(
            Context(1, 1, {}, RecordDict(), {}), config=config, strategy=strategy
        )
        fit = SecAggPlusWorkflow(5, 3, max_weight=4) if secure else None
        with RayGrid(app, 5, num_workers=1) as grid:
            DefaultWorkflow(fit_workflow=fit)(grid, context)
        metrics = context.history.metrics_distributed_fit
        assert (metrics["num-clients"], metrics["num-failures"]) == ([(1, 4)], [(1, 1)])
        steps += [x for _, x in metrics["server-step-size"]]
    # Δᵢ = 2 eᵢ with weights 1 to 4 of 10: η = ½ 4 / (4 · 30/100 + ε).
    assert steps == [pytest.approx(2 / (1.2 + 1e-3), rel=1e-5)] * 2
    np.testing.assert_allclose(models[1], models[3], atol=1e-4)


def stock(size=(6, 3), fail=None, kill=None):
    """Our client on a linear model; clients have from 3 to 12 examples."""
    rng = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(90, size[0], generator=rng), torch.arange(90) % 3

    def data(context):
        p = partition(context)
        if p == fail:
            raise RuntimeError("no disk")
        if p == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        examples = Examples(inputs, targets, torch.arange(p, p + 3 + p % 10))
        return examples, examples

    return client_app(lambda context: nn.Linear(*size), data)


def trained(grid, size=(6, 3)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arrays = to_record(module_arrays(nn.Linear(*size)))
    strategy = FedExP(fraction_train=0.9, fraction_evaluate=0.0, seed=2)
    result = strategy.start(grid, arrays, num_rounds=3)
    return from_record(result.arrays), result.train_metrics_clientapp[3]


def on_workers(num_workers, vectorize, **kwargs):
    options = {"run_config": CONFIG, "num_workers": num_workers, "vectorize": vectorize}
    with RayGrid(stock(**kwargs), 80, **options) as grid:
        return trained(grid)


def test_one_worker_and_two_give_the_bits_of_the_serial_grid():
    expected, metrics = trained(SerialGrid(stock(), 80, run_config=CONFIG))
    for num_workers in (1, 2):
        arrays, theirs = on_workers(num_workers, "off")
        assert dict(theirs) == dict(metrics)
        for name in expected:
            np.testing.assert_array_equal(arrays[name], expected[name])


def test_clients_of_one_step_with_large_weights_give_the_bits_of_the_serial_grid():
    size, config = (900, 800), CONFIG | {"local-steps": 1}
    grid = SerialGrid(stock(size), 13, run_config=config, vectorize="auto")
    expected, metrics = trained(grid, size)
    options = {"run_config": config, "num_workers": 2, "vectorize": "auto"}
    with RayGrid(stock(size), 13, **options) as grid:
        arrays, theirs = trained(grid, size)
    assert dict(theirs) == dict(metrics)
    for name in expected:
        np.testing.assert_array_equal(arrays[name], expected[name])


def test_vectorised_clients_give_the_same_bits_on_any_number_of_workers_and_the_loops_values():
    fail = 17  # alone, in the middle of a group
    loop, metrics = trained(SerialGrid(stock(fail=fail), 80, run_config=CONFIG))
    with SerialGrid(stock(fail=fail), 80, run_config=CONFIG, vectorize="on") as grid:
        one, theirs = trained(grid)
    two, also = on_workers(2, "on", fail=fail)
    assert theirs["num-failures"] == 1
    assert dict(theirs) == dict(also)
    assert dict(theirs) == pytest.approx(dict(metrics), rel=1e-3)
    for name in loop:
        np.testing.assert_array_equal(one[name], two[name])
        np.testing.assert_allclose(one[name], loop[name], rtol=1e-3, atol=1e-5)


def test_a_client_that_kills_every_worker_is_found_in_its_group(monkeypatch):
    monkeypatch.setattr(ray_grid, "_ONE_BY_ONE", 2)  # each attempt takes a process with PyTorch
    kill = _sampled(3, num_nodes=80, fraction=0.9, seed=2)
    without, expected = trained(SerialGrid(stock(fail=kill), 80, run_config=CONFIG))
    arrays, metrics = on_workers(1, "on", kill=kill)
    assert expected["num-failures"] == 1
    assert dict(metrics) == pytest.approx(dict(expected), rel=1e-3)
    for name in without:
        np.testing.assert_allclose(arrays[name], without[name], rtol=1e-3, atol=1e-5)


def of_tokens(exits=None):
    """A model with padding, which a group would train; its first client may end itself."""
    tokens = torch.arange(90).reshape(30, 3) % 5

    def data(context):
        if partition(context) == exits:
            sys.exit(3)
        return (Examples(tokens, tokens.sum(1) % 3, torch.arange(partition(context), 30, 4)),) * 2

    def model(context=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))

    return client_app(model, data), to_record(module_arrays(model()))


@pytest.mark.parametrize(("exits", "num_workers"), [(None, 1), (0, 2)])
def test_what_a_group_would_train_otherwise_is_trained_one_by_one_and_that_is_logged(
    exits, num_workers, logged
):
    app, arrays = of_tokens(exits)
    runs = []
    for grid in (
        SerialGrid(app, 4, run_config=CONFIG),
        RayGrid(app, 4, run_config=CONFIG, num_workers=num_workers),
    ):
        with grid:
            runs.append(FedExP(fraction_evaluate=0.0, seed=2).start(grid, arrays, num_rounds=2))
    same_bits(*runs)
    assert dict(runs[1].train_metrics_clientapp[2]) == dict(runs[0].train_metrics_clientapp[2])
    assert runs[0].train_metrics_clientapp[2]["num-failures"] == (exits is not None)
    reason = "an embedding with padding_idx" if exits is None else "node 2 raised SystemExit"
    assert sum("Clients train one by one" in line and reason in line for line in logged) == 1


def task_of(num_clients):
    jobs = {p: ClientJob(None, 0) for p in range(num_clients)}
    return ray_grid._Task(0, jobs, "merge", ())


def lost(task):
    return [p for p, job in task.jobs.items() if job.given_up]


def test_a_task_that_ends_its_worker_for_no_known_reason_is_given_up_in_the_end():
    task, attempts = task_of(3), []
    for _ in range(3):
        attempts.append((task.attempt, lost(task)))
        task = ray_grid._again(task, None, "gone")
    assert attempts == [(1, []), (2, []), (3, [])]
    assert lost(task) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="Workers cannot start: gone"):
        ray_grid._again(task, None, "gone")


def test_without_the_client_to_blame_the_others_run_in_their_groups_again():
    task = ray_grid._again(replace(task_of(3), attempt=3), 1, "gone")
    assert (lost(task), task.attempt) == ([1], 2)
    assert task.jobs[1].given_up == "gone"
    again = ray_grid._again(ray_grid._again(task, None, "gone"), 2, "gone, too")
    assert [job.given_up for job in again.jobs.values()] == ["", "gone", "gone, too"]


def test_a_task_of_many_such_clients_is_given_up():
    task = task_of(2000)
    for p in range(10):
        task = ray_grid._again(task, p, "gone")
        assert lost(task) == list(range(p + 1))
    assert len(lost(ray_grid._again(task, 10, "gone"))) == 2000
