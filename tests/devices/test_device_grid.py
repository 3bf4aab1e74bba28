"""A federation of devices is a simulation with the same rows, to the last bit."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from wires import WireGrid

from fedexp.clients.client import client_app
from fedexp.clients.data import Examples
from fedexp.config import Config
from fedexp.datasets import Dataset
from fedexp.devices.app import client as device_app
from fedexp.devices.app import own_examples
from fedexp.devices.data_description import DataDescription
from fedexp.devices.device_grid import DeviceGrid
from fedexp.devices.edge import Edge
from fedexp.factories import examples_of
from fedexp.models import build
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import answer, error_reply
from fedexp.strategies import FedExP, FixedClip

DESCRIBED = DataDescription((6,), num_classes=3)
CONFIG: dict[str, Any] = {
    "model": "mlp",
    "local-steps": 5,
    "batch-size": 4,
    "learning-rate": 0.3,
    "seed": 3,
}
NUM = 6


@pytest.fixture(scope="module")
def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(7 + p, 6)).astype("f"), rng.integers(0, 3, 7 + p)) for p in range(NUM)
    ]


@pytest.fixture(scope="module")
def paths(rows: Any, tmp_path_factory: Any) -> list[Path]:
    folder = tmp_path_factory.mktemp("rows")
    for p, (x, y) in enumerate(rows):
        np.savez(folder / f"{p}.npz", x=x, y=y)
    return [folder / f"{p}.npz" for p in range(NUM)]


def simulated(rows: Any, num: int = NUM) -> SerialGrid:
    def data(context: Context) -> tuple[Examples, Examples]:
        x, y = map(torch.from_numpy, rows[int(context.node_config["partition-id"])])
        return Examples(x, y), Examples(x, y)

    app = client_app(lambda context: model(), data)
    return SerialGrid(app, num, run_config=CONFIG)


def model() -> Any:
    return build("mlp", _dataset(), seed=3)


def _dataset() -> Any:

    pair = torch.zeros(3, 6), torch.tensor([0, 1, 2])
    return Dataset(pair, pair, 3)


def node(path: Path, name: str) -> tuple[Any, dict[str, Any]]:
    return partial(answer, device_app), {"data": str(path), "name": name}


def edge_of(
    paths: list[Path], name: str, app: ClientApp = device_app
) -> tuple[Any, dict[str, Any]]:
    return Edge(app, paths, name), {"name": name}


def trained(grid: Any, num_rounds: int = 3, **settings: Any) -> tuple[dict[str, Any], list[Any]]:
    strategy = FedExP(fraction_evaluate=0.0, min_available_nodes=1, seed=0, **settings)
    start = to_record({k: x.numpy() for k, x in model().state_dict().items()})
    seen = list(rounds(strategy, grid, start, num_rounds=num_rounds, timeout=5.0))
    return dict(from_record(seen[-1].arrays)), seen


def assert_same_bits(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    assert all(a[k].tobytes() == b[k].tobytes() for k in a)


def device_grid(grid: WireGrid, **settings: Any) -> DeviceGrid:
    return DeviceGrid(grid, description=DESCRIBED.text(), **settings)


@pytest.mark.parametrize("order", [list, lambda ids: ids[::-1]])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_devices_give_the_bits_of_a_simulation(rows, paths, order, fraction):
    # Flower's node ids have nothing to do with the names.
    nodes = {900 - 7 * p: node(path, f"site{p}") for p, path in enumerate(paths)}
    grid = device_grid(WireGrid(nodes, CONFIG, order))
    after, seen = trained(grid, fraction_train=fraction)
    expected, simulation = trained(simulated(rows), fraction_train=fraction)
    assert_same_bits(after, expected)
    assert [dict(x.train) for x in seen] == [dict(x.train) for x in simulation]
    assert [x.training.asked for x in seen] == [x.training.asked for x in simulation]


@pytest.mark.parametrize("cut", [(3,), (1, 4), (2, 4), (5,)])
def test_edges_give_the_bits_of_the_flat_federation(rows, paths, cut):
    parts = [paths[a:b] for a, b in zip((0, *cut), (*cut, NUM), strict=True)]
    nodes = {50 + i: edge_of(part, f"edge{i}") for i, part in enumerate(parts)}
    for settings in (
        {"fraction_train": 1.0},
        {"fraction_train": 0.5, "clip": FixedClip(0.05)},
        {"robust": True},
    ):
        after, seen = trained(device_grid(WireGrid(nodes, CONFIG), edges=nodes.keys()), **settings)
        expected, simulation = trained(simulated(rows), **settings)
        assert_same_bits(after, expected)
        assert [dict(x.train) for x in seen] == [dict(x.train) for x in simulation]


def test_an_edge_and_devices_mix(rows, paths):
    nodes = {9: edge_of(paths[:4], "a"), 3: node(paths[4], "b"), 4: node(paths[5], "c")}
    after, _ = trained(device_grid(WireGrid(nodes, CONFIG), edges=[9]))
    assert_same_bits(after, trained(simulated(rows))[0])


def test_a_node_that_is_not_listed_may_not_answer_for_others(paths, logged):
    nodes = {9: edge_of(paths[:4], "a"), 3: node(paths[4], "b")}
    grid = device_grid(WireGrid(nodes, CONFIG))
    assert grid.get_node_ids() == [2]
    assert any("not listed as an edge" in line for line in logged)


def test_a_node_that_writes_the_id_of_an_edge_under_its_reply_is_no_edge(paths, logged):
    def pretending(message: Message, context: Context) -> Message:
        reply = Edge(device_app, paths[:2], "a")(message, context)
        reply.metadata.__dict__["_src_node_id"] = 9
        return reply

    wire = WireGrid({9: node(paths[0], "b"), 3: (pretending, {})}, CONFIG)
    wire.away.add(9)  # so that the other is asked first
    grid = device_grid(wire, edges=[9])
    assert grid.get_node_ids() == []
    assert any("Node 3 does not say who it is" in line for line in logged)


def test_a_node_that_does_not_say_who_it_is_holds_the_others_up_less_and_less(paths, monkeypatch):
    monkeypatch.setattr("fedexp.devices.roster._QUERY_PATIENCE", 0.05)
    wire = WireGrid({9: node(paths[0], "b"), 3: node(paths[1], "c")}, CONFIG)
    push = wire.push_messages

    def lossy(messages: Any) -> list[str]:
        ids = push(messages)
        for i, message in zip(ids, messages, strict=True):
            if message.metadata.dst_node_id == 3:
                wire.replies.pop(i)
        return ids

    wire.push_messages = lossy  # type: ignore[method-assign]
    grid, end = device_grid(wire), time.monotonic() + 1.5
    while time.monotonic() < end:
        assert grid.get_node_ids() == [2]
    asked = [message for message in wire.sent if message.metadata.dst_node_id == 3]
    assert 2 <= len(asked) <= 6  # every 0.1 s it would be 15


def test_a_node_of_flowers_takes_part_whatever_it_says_of_itself(rows, paths):
    def silent(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query":
            return error_reply(message, "no query handler")
        return answer(device_app, message, context)

    nodes = {9: (silent, {"data": str(paths[1])}), 3: node(paths[0], "b")}
    grid = device_grid(WireGrid(nodes, CONFIG))
    assert_same_bits(trained(grid)[0], trained(simulated(rows, 2))[0])
    partitions = {
        i: (partial(answer, client_app(lambda c: model(), lambda c: ...)), config)  # type: ignore
        for i, config in (
            (5, {"partition-id": 1, "num-partitions": 2}),
            (6, {"partition-id": 0, "num-partitions": 2}),
        )
    }
    grid = device_grid(WireGrid(partitions, CONFIG))
    assert grid.get_node_ids() == [2, 3]
    assert [client.node for client in grid.roster.clients] == [6, 5]


def test_whatever_a_device_says_went_wrong_is_one_short_line(paths):
    def shouting(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query":
            return answer(device_app, message, context)
        return error_reply(message, "\x1b[31mred\n\nround 9: done " + "x" * 100_000)

    nodes = {3: node(paths[0], "a"), 4: (shouting, {"name": "b"})}
    grid = device_grid(WireGrid(nodes, CONFIG))
    _, seen = trained(grid, num_rounds=1)
    ((_, reason),) = seen[0].training.failures
    assert reason.startswith("?[31mred round 9: done xxx")
    assert len(reason) <= 500
    asked = Message(RecordDict(), grid.get_node_ids()[1], "evaluate")
    (reply,) = grid.send_and_receive([asked], timeout=5.0)
    assert len(reply.error.reason) <= 500


def test_an_edge_answers_with_sums_or_not_at_all(paths):
    respond, config = edge_of(paths, "edge")
    context = Context(1, 9, config, RecordDict(), dict(CONFIG))
    reply = respond(Message(RecordDict(), 9, "train"), context)
    assert "none was asked for" in reply.error.reason


def test_one_failing_device_of_an_edge_is_a_failure_with_its_reason(rows, paths, tmp_path):
    bad = tmp_path / "bad.npz"
    np.savez(bad, x=np.zeros((3, 5)), y=np.zeros(3))
    nodes = {9: edge_of([*paths[:2], bad], "edge")}
    _, seen = trained(device_grid(WireGrid(nodes, CONFIG), edges=[9]), num_rounds=1)
    ((failed, reason),) = seen[0].training.failures
    assert failed == 4
    assert "the model takes [6]" in reason


def test_devices_that_come_later_get_the_next_numbers_and_return_with_their_own(paths):
    nodes = {10 + p: node(path, f"n{p}") for p, path in enumerate(paths)}
    wire = WireGrid(nodes, CONFIG)
    wire.away = {10, 11}
    grid = device_grid(wire)
    assert grid.get_node_ids() == [2, 3, 4, 5]
    wire.away = {14}
    assert grid.get_node_ids() == [2, 3, 5, 6, 7]
    assert [client.name for client in grid.roster.clients] == ["n2", "n3", "n4", "n5", "n0", "n1"]


def test_a_silent_device_is_late_and_enough_end_a_round(paths):
    nodes = {10 + p: node(path, f"n{p}") for p, path in enumerate(paths[:3])}
    wire = WireGrid(nodes, CONFIG)
    grid = device_grid(wire)
    grid.get_node_ids()
    push = wire.push_messages

    def lossy(messages: Any) -> list[str]:
        ids = push(messages)
        wire.replies.pop(ids[1], None)
        return ids

    wire.push_messages = lossy  # type: ignore[method-assign]
    _, seen = trained(grid, num_rounds=1)
    assert seen[0].training.failures == []
    assert (seen[0].train["num-clients"], seen[0].train["num-late"]) == (2, 1)
    assert all(message.metadata.ttl <= 7.0 for message in wire.sent[3:])
    grid.enough = 2
    _, seen = trained(grid, num_rounds=1)
    assert (seen[0].train["num-clients"], seen[0].train["num-late"]) == (2, 1)
    assert seen[0].seconds < 4


def test_evaluation_reaches_the_devices_of_an_edge(rows, paths):
    nodes = {9: edge_of(paths[:3], "a"), 3: node(paths[3], "b")}
    grid = device_grid(WireGrid(nodes, CONFIG), edges=[9])
    metrics = []
    for one in (grid, simulated(rows, 4)):
        strategy = FedExP(fraction_evaluate=1.0, min_available_nodes=1, seed=0)
        start = to_record({k: x.numpy() for k, x in model().state_dict().items()})
        (seen,) = rounds(strategy, one, start, num_rounds=1, timeout=5.0)
        metrics.append(dict(seen.evaluate))
    assert metrics[0] == metrics[1]
    assert metrics[0]["eval-accuracy"] >= 0


def test_rows_are_held_out_as_in_a_simulation(rows, paths):
    x, y = map(torch.from_numpy, rows[5])
    settings = {**CONFIG, "local-test-fraction": 0.3}
    for number in (0, 4):
        node_config = {"data": str(paths[5]), "partition-id": number, "num-partitions": 6}
        run_config = {**settings, "data-description": DESCRIBED.text()}
        context = Context(1, 9, node_config, RecordDict(), run_config)
        own = own_examples(context)
        whole = Dataset((x, y), (x, y), 3)
        theirs = examples_of(whole, np.arange(len(y)), Config.of(settings), number)
        for a, b in zip(own, theirs, strict=True):
            assert a.rows.tolist() == b.rows.tolist()


def test_a_server_waits_for_devices_as_long_as_it_is_told(paths):
    grid = device_grid(WireGrid({3: node(paths[0], "a")}, CONFIG))
    grid.wait_for(1)
    with pytest.raises(ValueError, match="1 of 2 devices came within 0 s"):
        grid.wait_for(2, timeout=0.0)


def test_a_run_whose_devices_have_gone_ends_when_it_has_waited_long_enough(paths):
    wire = WireGrid({3 + p: node(paths[p], f"n{p}") for p in range(2)}, CONFIG)
    grid = device_grid(wire)
    grid.wait_for(2, timeout=0.1)
    trained(grid, num_rounds=1)
    wire.away.add(4)
    with pytest.raises(ValueError, match=r"1 of 2 devices came within 0.1 s"):
        rounds_of_two(grid)


def rounds_of_two(grid: DeviceGrid) -> None:
    strategy = FedExP(fraction_evaluate=0.0, min_available_nodes=2, seed=0)
    start = to_record({k: x.numpy() for k, x in model().state_dict().items()})
    list(rounds(strategy, grid, start, num_rounds=2))
