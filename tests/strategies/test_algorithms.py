"""FedNova and FedDyn with clients of our own, against their papers and on quadratics."""

import numpy as np
import pytest
import torch
from builders import content, grid_of, merging_if, partition, record
from flwr.app import RecordDict
from torch import nn

from fedexp.clients import ClientSettings, Examples, client_app
from fedexp.clients.groups.group import ClientGroup
from fedexp.records import from_record
from fedexp.rounds import rounds
from fedexp.runs.checkpoint import Checkpoint
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import context_of
from fedexp.strategies import CentralPrivacy, FedAvg, FedDyn, FedNova

torch.set_num_threads(1)
# Client i has SIZES[i] copies of one row: (w - B[i])², on any minibatch.
SIZES, B, ETA, BATCH = [4, 8, 24], np.array([1.0, -2.0, 4.0]), 0.05, 4
P = np.array(SIZES) / sum(SIZES)
RUN = {"batch-size": BATCH, "learning-rate": ETA, "local-steps": 3}
START = {"weight": np.array([[3.0]])}
ALL = {"fraction_evaluate": 0.0, "min_train_nodes": 3, "min_available_nodes": 3}
SOME = {
    **{"fraction_evaluate": 0.0, "fraction_train": 0.67, "seed": 5},
    **{"min_train_nodes": 1, "min_available_nodes": 3},
}


def model(context):
    return nn.Linear(1, 1, bias=False).double()


def data(context):
    n, b = SIZES[partition(context)], B[partition(context)]
    return (Examples(torch.ones(n, 1).double(), torch.full((n, 1), b).double()),) * 2


APP = client_app(model, data, loss=nn.MSELoss())


class Asking(SerialGrid):
    """Remembers who was asked, round by round; replies of some rounds and clients are lost."""

    asked: tuple = ()
    lost: tuple = ()

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.asked = (*self.asked, [m.metadata.dst_node_id - 2 for m in messages])
        replies = super().send_and_receive(messages, timeout=timeout)
        at = len(self.asked)
        return [r for r in replies if (at, r.metadata.src_node_id - 2) not in self.lost]


def trained(strategy, num_rounds, grid=None, first=1, start=START, **run):
    grid = grid or Asking(APP, 3, run_config=RUN | run)
    arrays = record(start)
    *_, last = rounds(strategy, grid, arrays, num_rounds=num_rounds, first=first)
    return from_record(last.arrays)["weight"].item(), grid, last.train


def descended(y, b, steps, linear=0.0, alpha=0.0, w=0.0):
    """After so many steps on ``(y - b)² - linear y + α/2 (y - w)²``."""
    for _ in range(steps):
        y = y - ETA * (2 * (y - b) - linear + alpha * (y - w))
    return y


# --- FedNova --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
def test_fednova_is_the_papers_formula_for_unequal_epochs(weighted):
    taus = np.array([2, 4, 12])  # two passes over 4, 8 and 24 rows in batches of 4
    p, w = (P if weighted else np.full(3, 1 / 3)), 3.0
    for _ in range(4):
        updates = np.array([w - descended(w, b, tau) for b, tau in zip(B, taus, strict=True)])
        w = w - (p @ taus) * (p @ (updates / taus))
    ours, _, metrics = trained(FedNova(weighted=weighted, **ALL), 4, **{"local-epochs": 2.0})
    assert ours == pytest.approx(w, rel=1e-12)
    assert metrics["effective-local-work"] == pytest.approx(p @ taus)


def test_fednova_ends_where_the_weighted_objective_wants_it_and_fedavg_does_not():
    taus, best = np.array([2, 4, 12]), P @ B

    def fixed_points(eta):
        done = 1 - (1 - 2 * eta) ** taus  # the share of the way to b that a client goes
        return [weights @ B / weights.sum() for weights in (P * done / taus, P * done)]

    found = [trained(make(**ALL), 30, **{"local-epochs": 2.0})[0] for make in (FedNova, FedAvg)]
    assert found == pytest.approx(fixed_points(ETA), rel=1e-6)
    # With steps that vanish the first is the optimum, the second that of the weights pᵢτᵢ.
    assert fixed_points(1e-7) == pytest.approx([best, (P * taus) @ B / (P @ taus)], abs=1e-5)
    assert abs((P * taus) @ B / (P @ taus) - best) > 0.5


def test_with_equal_steps_fednova_is_fedavg():
    assert trained(FedNova(**ALL), 3)[0] == pytest.approx(trained(FedAvg(**ALL), 3)[0], rel=1e-12)


def test_the_local_work_is_what_the_gradients_weigh_in_an_update():
    settings = ClientSettings(
        num_steps=5, lr=0.3, proximal_mu=0.7, lr_exponent=0.5, lr_offset=2.0, first_step=10
    )
    rates = settings.rates()

    def moved(gradients):
        w = 0.0
        for rate, g in zip(rates, gradients, strict=True):
            w = w - rate * (g + 0.7 * w)
        return -w

    weights = [moved(np.eye(5)[t]) for t in range(5)]
    assert settings.local_work(rates[0]) == pytest.approx(sum(weights) / rates[0], rel=1e-12)
    assert ClientSettings(num_steps=7, lr=0.3).local_work(0.3) == pytest.approx(7)


def test_epochs_are_steps_of_the_clients_own_number():
    settings = ClientSettings.of(
        {"local-epochs": 1.5, "batch-size": 4, "server-round": 3, "learning-rate-exponent": 0.5}
    )
    own = settings.for_examples(10)
    assert (own.num_steps, own.first_step) == (4, 8)
    assert settings.for_examples(1).num_steps == 1
    assert not ClientGroup(APP.trainer).takes({"local-epochs": 1.0})
    context = context_of(2, 3, RUN | {"local-epochs": 1.0}, RecordDict())
    with pytest.raises(ValueError, match="unequally many steps"):
        ClientGroup.of(APP, "on", context)
    with pytest.raises(ValueError, match=r"local-epochs=-1.*at least 0"):
        ClientSettings.of({"local-epochs": -1})


@pytest.mark.parametrize("merges", [True, False])
def test_under_robust_nobody_moves_the_model_by_a_claim_of_work(merges):
    def liar(message, context):
        own = {0: 1e-12, 1: 1e14}.get(partition(context), 2.0)
        w = from_record(message.content["arrays"])["weight"]
        moved = -0.1 if partition(context) > 1 else 0.1
        return content({"weight": w + moved}, num_examples=4, local_work=own)

    grid = merging_if(merges, grid_of(7, liar))
    sizes = {"min_train_nodes": 7, "min_available_nodes": 7, "fraction_evaluate": 0.0}
    *_, last = rounds(FedNova(robust=True, **sizes), grid, record(START), num_rounds=3)
    moved = from_record(last.arrays)["weight"].item() - 3.0
    assert -3 * 0.1 * 3 < moved < 0  # no round is longer than three times what a client sends


# --- FedDyn ---------------------------------------------------------------------------------

ALPHA = 0.5


def feddyn_by_hand(asked, weights, lost=(), w=3.0):
    """Acar et al. 2021, alg. 1, with weights; ``lost`` are (round, client) not to be counted."""
    own, total = np.zeros(3), np.sum(weights)
    for t, clients in enumerate(asked, 1):
        there = [i for i in clients if (t, i) not in lost]
        ends = {i: descended(w, B[i], 3, own[i], ALPHA, w) for i in there}
        for i in there:
            own[i] -= ALPHA * (ends[i] - w)
        mean = sum(weights[i] * ends[i] for i in there) / sum(weights[i] for i in there)
        w = mean - (weights @ own / total) / ALPHA
    return w


@pytest.mark.parametrize("lost", [(), ((2, 0), (2, 1), (3, 2))])
def test_feddyn_is_the_papers_algorithm_with_partial_participation_and_lost_replies(lost):
    strategy, grid = (
        FedDyn(proximal_mu=ALPHA, weighted=False, **SOME),
        Asking(APP, 3, run_config=RUN),
    )
    grid.lost = lost
    ours, grid, _ = trained(strategy, 5, grid)
    assert len({tuple(clients) for clients in grid.asked}) > 1
    assert ours == pytest.approx(feddyn_by_hand(grid.asked, np.ones(3), lost), rel=1e-10)


def test_feddyn_weighs_clients_by_their_examples():
    ours, grid, _ = trained(FedDyn(proximal_mu=ALPHA, **ALL), 5)
    assert ours == pytest.approx(feddyn_by_hand(grid.asked, np.array(SIZES)), rel=1e-10)


def test_feddyn_ends_at_the_optimum_of_all_clients():
    near = {"learning-rate": 0.2, "local-steps": 4}
    weighted, *_ = trained(FedDyn(proximal_mu=1.0, **ALL), 25, **near)
    assert weighted == pytest.approx(P @ B, abs=1e-6)
    some, *_ = trained(FedDyn(proximal_mu=1.0, weighted=False, **SOME), 40, **near)
    assert some == pytest.approx(B.mean(), abs=1e-3)


def test_a_group_of_feddyns_clients_trains_as_each_of_them_alone():
    grids = [SerialGrid(APP, 3, run_config=RUN, vectorize=mode) for mode in ("on", "off")]
    together, alone = (trained(FedDyn(proximal_mu=ALPHA, **ALL), 4, g)[0] for g in grids)
    assert together == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("make", [FedDyn, FedNova])
def test_a_resumed_run_ends_at_the_same_bits(make, tmp_path):
    run = {"local-epochs": 1.0} if make is FedNova else {}
    whole, *_ = trained(make(**SOME), 6, **run)
    first = make(**SOME)
    middle, grid, _ = trained(first, 3, **run)
    states = dict(grid.states)
    Checkpoint(3, {"weight": np.array([[middle]])}, first.state, {}, states).save(tmp_path / "c")
    saved, second = Checkpoint.load(tmp_path / "c"), make(**SOME)
    second.state, other = dict(saved.state), Asking(APP, 3, run_config=RUN | run)
    other.states = dict(saved.clients)
    assert trained(second, 6, other, 4, saved.params)[0] == whole


def test_clients_that_do_not_regularise_are_refused():
    def foreign(message, context):
        return content(from_record(message.content["arrays"]))

    with pytest.raises(ValueError, match=r"FedDyn.*no control-step.*Use fedexp.clients"):
        trained(FedDyn(**ALL), 1, grid_of(3, foreign))


@pytest.mark.parametrize("make", [FedDyn, FedNova])
def test_what_does_not_go_with_an_algorithm_is_said_at_once(make):
    with pytest.raises(ValueError, match="control variates do not go with it"):
        make(control_variates=True)
    with pytest.raises(ValueError, match="which no noise hides"):
        make(extensions=[CentralPrivacy(noise_multiplier=1.0, clip=1.0)], weighted=False)
    with pytest.raises(ValueError, match=r"proximal_mu=0.*must be > 0"):
        FedDyn(proximal_mu=0.0)
