"""Layers that stay at the clients, against the loop written out."""

import numpy as np
import pytest
import torch
from builders import partition, record
from flwr.app import RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import nn

from fedexp.clients import Examples, client_app
from fedexp.clients.client_round import ClientRound
from fedexp.clients.groups.group import ClientGroup
from fedexp.config import Config
from fedexp.factories import check_model
from fedexp.records import from_record
from fedexp.rounds import rounds
from fedexp.runs.checkpoint import Checkpoint
from fedexp.runs.engines import grid_of as engine_of
from fedexp.runs.run import Run
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import context_of
from fedexp.simulation.transport import unpack
from fedexp.strategies import FedAvg, FedDyn, FedExP, Scaffold, legacy
from fedexp.strategy_factory import prepared, strategy_of

torch.set_num_threads(1)
B, ETA, STEPS, N = [1.0, -2.0, 4.0, 0.5], 0.1, 3, 4
RUN = {"batch-size": 2, "learning-rate": ETA, "local-steps": STEPS}
START = {"body": np.array([3.0]), "head": np.array([1.0])}
SOME = {
    **{"fraction_train": 0.5, "seed": 5, "min_train_nodes": 1, "min_available_nodes": N},
    **{"fraction_evaluate": 1.0, "min_evaluate_nodes": N, "private_layers": "head*"},
}


class Sum(nn.Module):
    """``(body + head) x``."""

    def __init__(self):
        super().__init__()
        self.body = nn.Parameter(torch.tensor([3.0]).double())
        self.head = nn.Parameter(torch.tensor([1.0]).double())

    def forward(self, x):
        return (self.body + self.head) * x


def data(context):
    b = B[partition(context)]
    return (Examples(torch.ones(2, 1).double(), torch.full((2, 1), b).double()),) * 2


APP = client_app(lambda context: Sum(), data, loss=nn.MSELoss())


class Looking(SerialGrid):
    """Remembers who trained, and the names of the arrays that came by."""

    trained: tuple = ()
    names: frozenset = frozenset()

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if messages and messages[0].metadata.message_type == "train":
            self.trained = (*self.trained, [m.metadata.dst_node_id - 2 for m in messages])
        for message in (*messages, *replies):
            if "arrays" in message.content:
                self.names |= message.content["arrays"].keys()
        return replies


def trained(strategy, num_rounds, grid=None, first=1, start=START):
    grid = grid or Looking(APP, N, run_config=RUN)
    *_, last = rounds(strategy, grid, record(start), num_rounds=num_rounds, first=first)
    return {k: x.item() for k, x in from_record(last.arrays).items()}, grid, last


def test_a_run_is_the_loop_written_out_and_no_private_layer_travels():
    ours, grid, last = trained(FedAvg(**SOME), 3)
    w, heads = 3.0, [1.0] * N
    for clients in grid.trained:
        ends = []
        for i in clients:
            y = w
            for _ in range(STEPS):
                g = 2 * (y + heads[i] - B[i])
                y, heads[i] = y - ETA * g, heads[i] - ETA * g
            ends.append(y)
        w = np.mean(ends)
    assert len({tuple(clients) for clients in grid.trained}) > 1
    assert ours == {"body": pytest.approx(w, rel=1e-12), "head": 1.0}
    assert list(ours) == ["body", "head"]
    assert grid.names == {"body"}
    kept = {node - 2: unpack(s) for node, s in grid.states.items() if "private-layers" in s}
    assert kept.keys() == {i for clients in grid.trained for i in clients}
    for i, state in kept.items():
        assert from_record(state["private-layers"])["head"] == pytest.approx(heads[i], rel=1e-12)
    # Every client is tested with its own head, also one that has never trained.
    losses = [(w + heads[i] - B[i]) ** 2 for i in range(N)]
    assert last.evaluate["eval-loss"] == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("make", [FedExP, Scaffold, FedDyn])
def test_a_resumed_run_ends_at_the_same_bits_whatever_the_strategy(make, tmp_path):
    whole, one, _ = trained(make(**SOME), 4)
    first = make(**SOME)
    _, grid, step = trained(first, 2)
    arrays = from_record(step.arrays)
    Checkpoint(2, arrays, first.state, {}, dict(grid.states)).save(tmp_path / "c")
    saved, second = Checkpoint.load(tmp_path / "c"), make(**SOME)
    second.state, other = dict(saved.state), Looking(APP, N, run_config=RUN)
    other.states = dict(saved.clients)
    assert trained(second, 4, other, 3, saved.params)[0] == whole
    assert one.names | other.names == {"body"}


def test_a_run_by_the_flag_keeps_the_servers_layers_and_tests_the_clients_own():
    config = Config(
        **{"strategy": "fedexp", "private_layers": "3.*", "engine": "serial", "num_clients": 3},
        **{"num_server_rounds": 2, "local_steps": 2, "fraction_train": 1.0},
        **{"fraction_evaluate": 1.0, "local_test_fraction": 0.2},
    )
    with engine_of(config) as grid:
        one = Run(config, "fedexp", 3)
        first, rounds_ = from_record(one.arrays), list(one.rounds(grid))
    last = from_record(rounds_[-1].arrays)
    assert list(last) == list(first)
    for name in first:
        assert np.array_equal(first[name], last[name]) == name.startswith("3.")
    assert rounds_[-1].evaluate["eval-accuracy"] > 0


def test_layers_of_another_run_are_not_used():
    grid = Looking(APP, N, run_config=RUN)
    first, *_ = trained(FedAvg(**SOME), 2, grid)
    grid.trained = ()
    assert trained(FedAvg(**SOME), 2, grid)[0] == first


@pytest.mark.parametrize(("patterns", "which"), [("tail.*", "none"), ("body, head", "all")])
def test_patterns_that_leave_nothing_to_do_are_refused(patterns, which):
    with pytest.raises(ValueError, match=rf"private_layers='{patterns}'.*names {which} of"):
        trained(FedAvg(**{**SOME, "private_layers": patterns}), 1)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavg(private_layers=tail.*)"])
def test_patterns_that_match_nothing_are_refused_before_there_is_a_run(strategy):
    config = Config(strategy=strategy, private_layers="" if "(" in strategy else "tail.*")
    with pytest.raises(ValueError, match=r"names none of .* has 1.weight, 1.bias, .*3.bias\.$"):
        check_model(config)


def test_clients_with_layers_of_their_own_train_one_by_one_and_not_privately():
    told = {**RUN, "private-layers": "head*"}
    assert not ClientGroup(APP.trainer).takes(told)
    context = context_of(2, N, told | {"local-optimizer": "dp-sgd"}, RecordDict())
    module = APP.trainer.module(context)
    sent = {"body": START["body"]}
    with pytest.raises(ValueError, match="private layers do not go with it"):
        ClientRound(APP.trainer, module, context.run_config, sent, RecordDict(), context)


def test_a_strategy_that_would_send_them_is_refused():
    config = Config(private_layers="2.*")
    assert strategy_of(config, "fedexp", 3).extensions.reading({}) is not None
    with pytest.raises(ValueError, match=r"private-layers='2.\*'.*would send them"):
        prepared(FlowerFedAvg(), config, "fedavg", 3)
    with pytest.raises(ValueError, match="no such argument in the older API"):
        legacy.FedAvg(private_layers="2.*")
