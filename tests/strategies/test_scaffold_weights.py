"""SCAFFOLD with clients of unequal size, against the closed-form optimum of their objective."""

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import nn

from fedexp.clients import Examples, client_app
from fedexp.clients.state import ControlVariates
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.runs.checkpoint import Checkpoint
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import context_of, error_reply
from fedexp.simulation.transport import unpack
from fedexp.strategies import FedAvg, FixedClip, MedianBounds, QuantileClip, Scaffold, ScaffoldExP

SIZES, D = [10, 20, 40, 10, 20, 40], 3
SPANS = [range(sum(SIZES[:i]), sum(SIZES[: i + 1])) for i in range(len(SIZES))]
RNG = np.random.default_rng(0)
X, Y = np.zeros((sum(SIZES), D)), np.zeros(sum(SIZES))
for span in SPANS:  # curvatures between 1.3 and 2.9, so that a few rounds are enough
    directions, _ = np.linalg.qr(RNG.normal(size=(len(span), D)))
    X[span] = len(span) ** 0.5 * directions * RNG.uniform(0.8, 1.2, D)
    Y[span] = X[span] @ RNG.normal(size=D) * 2
INPUTS, TARGETS = torch.from_numpy(X), torch.from_numpy(Y[:, None])
SETTINGS = {"local-steps": 3, "batch-size": 40, "learning-rate": 0.12}


def examples(context):
    own = Examples(INPUTS, TARGETS, torch.tensor(SPANS[int(context.node_config["partition-id"])]))
    return own, own


APP = client_app(lambda context: nn.Linear(D, 1, bias=False).double(), examples)


def optimum(weights):
    """Of ``Σ pᵢ |Xᵢw - yᵢ|²/nᵢ``: its normal equations solved."""
    hessian = sum(p * X[s].T @ X[s] / len(s) for p, s in zip(weights, SPANS, strict=True))
    right = sum(p * X[s].T @ Y[s] / len(s) for p, s in zip(weights, SPANS, strict=True))
    return np.linalg.solve(hessian, right)


class Grid(SerialGrid):
    """Clients whose replies are not all applied.

    Args:
        lost: a fifth of the replies get lost after training; every other time nobody says so.
        scaled: rounds in which the last client sends its update a million times as long.
    """

    def __init__(self, lost=False, scaled=0):
        super().__init__(APP, len(SIZES), run_config=SETTINGS)
        self.lost, self.scaled, self.round = lost, scaled, 0

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.round += bool(messages)
        sent = {m.metadata.dst_node_id: m for m in messages}
        for reply in super().send_and_receive(messages, timeout=timeout):
            node = reply.metadata.src_node_id
            if self.lost and (self.round + node) % 5 == 0:
                if self.round % 2:
                    yield error_reply(sent[node], "no network")
                continue
            if self.round <= self.scaled and node == len(SIZES) + 1:
                before = from_record(sent[node].content["arrays"])["weight"]
                after = from_record(reply.content["arrays"])["weight"]
                reply.content["arrays"] = to_record({"weight": before + 1e6 * (after - before)})
            yield reply


def merging():
    """A grid whose workers add the replies up."""
    return SerialGrid(APP, len(SIZES), run_config=SETTINGS)


def made(make=Scaffold, fraction=0.5, **kwargs):
    few = {"min_train_nodes": 1, "min_available_nodes": len(SIZES), "fraction_evaluate": 0.0}
    return make(fraction_train=fraction, seed=0, **few, **kwargs)


def run(strategy, grid, num_rounds, first=1, arrays=None):
    arrays = arrays or to_record({"weight": np.zeros((1, D))})
    *_, last = rounds(strategy, grid, arrays, num_rounds=num_rounds, first=first)
    return last.arrays


def distance(arrays, weights=SIZES):
    best = optimum(weights)
    return np.linalg.norm(from_record(arrays)["weight"][0] - best) / np.linalg.norm(best)


CLOSE = 1e-6  # of the optimum; FedAvg stays a tenth away


@pytest.mark.parametrize(
    ("make", "fraction", "num_rounds"),
    [
        *((Scaffold, 0.17, 240), (Scaffold, 0.5, 45), (Scaffold, 0.84, 28), (Scaffold, 1.0, 25)),
        # One client alone leaves nothing to extrapolate.
        *((ScaffoldExP, 0.5, 45), (ScaffoldExP, 0.84, 28), (ScaffoldExP, 1.0, 28)),
    ],
)
def test_it_converges_to_the_optimum_whoever_takes_part(make, fraction, num_rounds):
    assert distance(run(made(make, fraction), merging(), num_rounds)) < CLOSE


@pytest.mark.parametrize("weights", [SIZES, [1] * len(SIZES)])
def test_so_do_replies_one_by_one_and_to_the_optimum_that_is_asked_for(weights):
    strategy = made(weighted=weights == SIZES)
    assert distance(run(strategy, Grid(), 45), weights) < CLOSE


def test_bounded_weights_lead_to_the_optimum_of_the_bounded_weights():
    strategy = made(robust=MedianBounds(norm=1e6, weight=1.0))
    arrays = run(strategy, Grid(), 45)
    median = float(strategy.state["medians"]["weight"])
    assert median in (10, 20)  # of the first cohort, so that some weigh less than they claim
    assert distance(arrays, [min(size, median) for size in SIZES]) < CLOSE


def test_fedavg_does_not():
    assert distance(run(made(FedAvg, 1.0), Grid(), 25)) > 1e-1


NOT_ALL_APPLIED = {
    "clipped": (lambda **kw: made(clip=FixedClip(0.5), **kw), merging),
    "clipped alone": (lambda **kw: made(clip=FixedClip(0.5), **kw), lambda: Grid()),
    "adaptively": (lambda **kw: made(clip=QuantileClip(0.3, 0.9), **kw), merging),
    "lost": (made, lambda: Grid(lost=True)),
    "dropped": (lambda **kw: made(drop_beyond=1e3, **kw), lambda: Grid(scaled=6)),
    "dropped and clipped": (
        lambda **kw: made(ScaffoldExP, drop_beyond=1e3, clip=FixedClip(1.0), **kw),
        lambda: Grid(scaled=6),
    ),
}


@pytest.mark.parametrize(("fraction", "num_rounds"), [(0.5, 55), (1.0, 30)])
@pytest.mark.parametrize("kind", NOT_ALL_APPLIED)
def test_the_variates_follow_what_was_applied(kind, fraction, num_rounds):
    make, grid_of = NOT_ALL_APPLIED[kind]
    strategy, grid = make(fraction=fraction), grid_of()
    early = run(strategy, grid, 15)
    # The server's is the mean of those that the clients will go on from.
    variates = [own_variate(strategy, grid, node) for node in grid.get_node_ids()]
    expected = np.average(variates, axis=0, weights=SIZES)
    np.testing.assert_allclose(strategy.state["control-variate"]["weight"], expected, atol=1e-12)
    assert distance(run(strategy, grid, 15 + num_rounds, 16, early)) < CLOSE


def own_variate(strategy, grid, node):
    """What a client takes for its own when it is asked again."""
    weight, applied = (column(strategy, name)[node] for name in ("weight", "applied"))
    config = {"control-nodes": [node], "control-rounds": [applied]}
    config["run-id"] = float(strategy.state["run-id"]["id"])
    zero = np.zeros((1, D))
    content = RecordDict({"control-variate": to_record({"weight": zero})})
    context = context_of(node, len(SIZES), {}, unpack(grid.states[node]))
    return ControlVariates.of(content, config, context, weight).own.get("weight", zero)


def column(strategy, name):
    """What the server knows of each client."""
    known = strategy.state["control-clients"]
    return dict(zip(known["nodes"].tolist(), known[name].tolist(), strict=True))


@pytest.mark.parametrize("fraction", [0.34, 0.5])
def test_a_weight_that_changes_with_the_round_leaves_no_trace(fraction):
    # Robust bounds follow the sizes of whoever takes part, so that 40 counts as 30 in some rounds.
    strategy, grid, seen = made(fraction=fraction, robust=True), Grid(), set()
    arrays = to_record({"weight": np.zeros((1, D))})
    for _ in rounds(strategy, grid, arrays, num_rounds=20):
        weights = column(strategy, "weight")
        seen |= {round(p) for p in weights.values()}
        sums = sum(p * own_variate(strategy, grid, node) for node, p in weights.items())
        total = strategy.state["control-clients"]["total"]
        np.testing.assert_allclose(
            strategy.state["control-variate"]["weight"], sums / total, atol=1e-12
        )
    assert len(seen) > 3


@pytest.mark.parametrize("lost", [True, False])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(lost, tmp_path):
    grid_of = partial(Grid, lost=True) if lost else merging
    whole = run(made(), grid_of(), 20)
    first, grid = made(), grid_of()
    arrays = run(first, grid, 10)
    Checkpoint(10, from_record(arrays), first.state, clients=grid.states).save(tmp_path / "c")
    saved, second, grid = Checkpoint.load(tmp_path / "c"), made(), grid_of()
    second.state, grid.round = dict(saved.state), 10
    grid.states.update(saved.clients)
    resumed = run(second, grid, 20, 11, to_record(saved.params))
    np.testing.assert_array_equal(from_record(resumed)["weight"], from_record(whole)["weight"])


def test_a_client_that_never_answered_counts_with_the_mean_size_of_the_others():
    # c = Σ nᵢcᵢ / P with P = 6 · mean of the sizes seen; cᵢ of the others is zero.
    strategy, grid = made(fraction=0.34), Grid()
    run(strategy, grid, 1)
    variates = {node: own_variate(strategy, grid, node) for node in grid.states}
    sizes = {node: SIZES[node - 2] for node in variates}
    total = len(SIZES) * np.mean(list(sizes.values()))
    expected = sum(sizes[node] * c for node, c in variates.items()) / total
    np.testing.assert_allclose(strategy.state["control-variate"]["weight"], expected)
