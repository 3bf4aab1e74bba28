"""Floating-point buffers that no name gives away: averaged, not stepped, and in no norm."""

import numpy as np
import pytest
import torch
from builders import Single, content, grid_of, merging_if, partition
from flwr.app import ConfigRecord
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import strategy as flower
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from fedexp.clients import Examples, client_app, module_arrays
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedExP, FixedClip, QuantileClip, ScaffoldExP

SETTINGS = {"local-steps": 3, "batch-size": 4, "learning-rate": 0.3}


class Shadow(nn.Module):
    """A layer that keeps a moving average of its weight, and the usual statistics."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.register_buffer("shadow", torch.zeros(4, 4))

    def forward(self, x):
        self.shadow.mul_(0.5).add_(self.layer.weight.detach(), alpha=0.5)
        return self.norm(self.layer(x))


class CodeBook(nn.Module):
    """Nearest of some vectors, which follow what they are nearest to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("book", torch.randn(3, 4))

    def forward(self, x):
        nearest = torch.cdist(x, self.book).argmin(1)
        self.book[nearest] += 0.5 * (x.detach() - self.book[nearest])
        return x + self.book[nearest]


LAYERS = {
    "spectral norm": lambda: spectral_norm(nn.Linear(4, 4)),
    "moving average": Shadow,
    "code book": CodeBook,
}
BUFFERS = {"spectral norm": {"_u", "_v"}, "moving average": {"shadow"}, "code book": {"book"}}


def model_of(kind):
    torch.manual_seed(0)
    return nn.Sequential(LAYERS[kind](), nn.Linear(4, 2))


def app_of(kind):
    def examples(context):
        rng = np.random.default_rng(partition(context))
        x, y = rng.normal(size=(8, 4)), rng.integers(0, 2, 8)
        return (Examples(torch.from_numpy(x).float(), torch.from_numpy(y)),) * 2

    return client_app(lambda context: model_of(kind), examples)


class Network(Single):
    """Every reply goes through bytes, alone."""

    def __init__(self, *args, **kwargs):
        super().__init__(SerialGrid(*args, **kwargs))

    def pull_messages(self, message_ids):
        replies = self.grid.pull_messages(message_ids)
        for reply in replies:
            reply.content = recorddict_from_proto(recorddict_to_proto(reply.content))
        return replies


def run(strategy, kind, grid=SerialGrid, num_rounds=3, first=1, arrays=None):
    arrays = arrays or to_record(module_arrays(model_of(kind)))
    grid = grid(app_of(kind), 5, run_config=SETTINGS)
    *_, last = rounds(strategy, grid, arrays, num_rounds=num_rounds, first=first)
    return last


def assert_same(a, b):
    assert a.train == b.train
    for name, x in from_record(a.arrays).items():
        np.testing.assert_array_equal(x, from_record(b.arrays)[name])


@pytest.mark.parametrize("grid", [SerialGrid, Network])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "make",
    [
        FedExP,
        lambda **kw: FedExP(clip=QuantileClip(0.1), **kw),
        lambda **kw: FedExP(drop_beyond=1.5, **kw),
        lambda **kw: ScaffoldExP(clip=FixedClip(0.2), **kw),
    ],
)
def test_our_clients_say_what_their_parameters_are(make, kind, grid):
    parameters = {name for name, _ in model_of(kind).named_parameters()}
    strategy = make(fraction_evaluate=0.0, seed=0, fraction_train=0.6)
    told = make(fraction_evaluate=0.0, seed=0, fraction_train=0.6, trainable=parameters)
    assert_same(run(strategy, kind, grid), run(told, kind, grid))
    assert {name.split(".")[-1] for name in strategy.state["buffers"]} == BUFFERS[kind]


def test_buffers_are_the_clients_mean_and_not_moved_further():
    found = run(FedExP(fraction_evaluate=0.0, epsilon=0.0), "code book", num_rounds=1)
    assert found.train["server-step-size"] > 1
    ends = []
    for p in range(5):
        one = SerialGrid(app_of("code book"), 5, run_config=SETTINGS)
        alone = FedExP(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        one.get_node_ids = lambda p=p: range(p + 2, p + 3)
        start = to_record(module_arrays(model_of("code book")))
        ends.append(from_record(alone.start(one, start, num_rounds=1).arrays)["0.book"])
    np.testing.assert_allclose(from_record(found.arrays)["0.book"], np.mean(ends, 0), rtol=1e-6)


def test_what_was_learned_is_in_the_state():
    whole, first, second = (FedExP(fraction_evaluate=0.0, seed=0) for _ in range(3))
    expected = run(whole, "moving average")
    middle = run(first, "moving average", num_rounds=1)
    second.state = dict(first.state)
    assert_same(run(second, "moving average", first=2, arrays=middle.arrays), expected)


def test_a_user_who_names_the_arrays_has_the_last_word():
    every = {name for name in module_arrays(model_of("code book"))}
    strategy = FedExP(fraction_evaluate=0.0, trainable=every)
    run(strategy, "code book")
    assert strategy.reading().trainable == every
    assert "buffers" not in strategy.state


W = {"w": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)}


def naming(*names, odd=0):
    """Foreign clients; the one of partition ``odd`` names these arrays as buffers."""

    def train(message, context):
        p, now = partition(context), from_record(message.content["arrays"])
        body = content({k: x + np.float32(p + 1) for k, x in now.items()})
        if p == odd:
            body["fedexp-buffers"] = ConfigRecord({"names": list(names)})
        return body

    return grid_of(5, train)


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("odd", [0, 4])
@pytest.mark.parametrize("names", [["w"], ["w", "b"]])
def test_one_client_decides_nothing_for_the_others(names, odd, merges):
    grid = naming(*names, odd=odd)
    grid = merging_if(merges, grid)
    strategy = FedExP(fraction_evaluate=0.0)
    first, second = (x.train for x in rounds(strategy, grid, to_record(W), num_rounds=2))
    assert (first["num-clients"], first["num-failures"]) == (4, 1)
    assert (second["num-clients"], second["num-failures"]) == (5, 0)  # nobody is asked again
    assert strategy.reading().trainable == {"w", "b"}


@pytest.mark.parametrize("names", [[], ["nobody"]])
def test_names_that_are_none_of_ours_change_nothing(names):
    strategy = FedExP(fraction_evaluate=0.0)
    (only,) = rounds(strategy, naming(*names), to_record(W), num_rounds=1)
    assert (only.train["num-clients"], only.train["num-failures"]) == (5, 0)


def test_foreign_clients_are_read_by_name_and_the_log_says_so(logged):
    (_,) = rounds(FedExP(fraction_evaluate=0.0), naming(odd=9), to_record(W), num_rounds=1)
    assert "Moved by the server step: 2 arrays, by name." in logged


def test_a_new_run_learns_anew():
    strategy = FedExP(fraction_evaluate=0.0)
    run(strategy, "code book", num_rounds=1)
    (_,) = rounds(strategy, naming(odd=9), to_record(W), num_rounds=1)
    assert strategy.reading().trainable == {"w", "b"}


def test_flowers_own_strategies_take_our_clients_as_ever():
    grid = SerialGrid(app_of("code book"), 3, run_config=SETTINGS)
    start = to_record(module_arrays(model_of("code book")))
    result = flower.FedAvg(fraction_evaluate=0.0).start(grid, start, num_rounds=1)
    assert np.abs(from_record(result.arrays)["1.weight"] - from_record(start)["1.weight"]).max() > 0
