"""Private clients: their steps, their budget, what they tell, and an attack on a single step."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from scipy import stats
from torch import nn

from fedexp.clients import (
    Client,
    ClientSettings,
    Examples,
    PrivateLineSearch,
    PrivateSGD,
    as_optimizer,
)
from fedexp.clients.groups.group import ClientGroup
from fedexp.clients.named import named_optimizer
from fedexp.clients.private_budget import Budget, Plan
from fedexp.clients.private_gradients import PerExample
from fedexp.clients.trial import try_model
from fedexp.privacy.accounting import PrivacyFilter, PrivateStep, epsilon_of
from fedexp.privacy.mechanisms import first_above, noisy_sum
from fedexp.privacy.noise import SeededNoise

X = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 3))).float()
MINE = Examples(X, (X[:, 0] > 0).long())
START = {"weight": np.zeros((2, 3), "f"), "bias": np.zeros(2, "f")}
SEARCH = "private-line-search(epsilon=20.0, steps=30, noise-seed=1)"
CLIENT = Client(lambda context: nn.Linear(3, 2), lambda context: (MINE, MINE))
SEEDED = pytest.mark.filterwarnings("ignore:The noise is fixed")


def new_context():
    return Context(1, 2, {"partition-id": 0}, RecordDict(), {})


def fit(optimizer, context, arrays=START, client=CLIENT, **config):
    config = {"local-steps": 12, "batch-size": 50, "local-optimizer": optimizer, **config}
    return client.fit(config, arrays, RecordDict(), context)


@SEEDED
def test_a_client_spends_its_budget_over_its_rounds_and_then_sends_models_as_they_came():
    context, arrays, found = new_context(), START, []
    for server_round in range(1, 5):
        result = fit(SEARCH, context, arrays, **{"server-round": server_round})
        found.append(result.metrics)
        last, arrays = arrays, result.arrays
    epsilons = [metrics["epsilon-spent"] for metrics in found]
    steps = [metrics["private-steps"] for metrics in found]
    assert epsilons == sorted(epsilons)
    assert 10 < epsilons[-1] <= 20
    assert steps == [12, 24, 30, 30]
    assert [metrics["budget-is-spent"] for metrics in found][-1] == 1
    np.testing.assert_array_equal(arrays["weight"], last["weight"])
    assert found[-1]["learning-rate"] == 0
    model = nn.Linear(3, 2)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()})
    assert float((model(X).argmax(1) == MINE.targets).float().mean()) > 0.9
    # Nothing but what private steps release, and the number of examples.
    assert found[0].keys() == {
        *("num-examples", "learning-rate", "epsilon-spent"),
        *("private-steps", "budget-left", "budget-is-spent"),
    }
    with pytest.raises(ValueError, match="a plan cannot change"):
        fit(SEARCH, context, arrays, **{"batch-size": 20})


@SEEDED
def test_equal_steps_cost_what_their_plan_says_and_take_the_learning_rate():
    context = new_context()
    optimizer = "dp-sgd(epsilon=2.0, steps=10, learning-rate=0.3, noise-seed=1)"
    config = CLIENT.config(RecordDict(), Context(1, 2, {}, RecordDict(), {}))
    client = Client(CLIENT.model, CLIENT.data, named_optimizer(optimizer))
    result = fit(optimizer, context, client=client, **config, **{"learning-rate": 0.3})
    assert result.metrics["learning-rate"] == pytest.approx(0.3)
    assert result.metrics["private-steps"] == 10
    assert result.metrics["budget-left"] == 0
    assert 1.98 < result.metrics["epsilon-spent"] <= 2
    plain = fit("private-line-search(epsilon=2.0, steps=10, growth=1.0)", new_context())
    assert plain.metrics["private-steps"] == 10
    assert 1.98 < plain.metrics["epsilon-spent"] <= 2


def test_a_client_may_fix_its_own_privacy_in_python():
    for mine in (PrivateSGD(0.5, 1e-6, 7), PrivateLineSearch(epsilon=0.5, growth=1.0)):
        assert as_optimizer(mine).private() == mine
    client = Client(CLIENT.model, CLIENT.data, as_optimizer(PrivateSGD(2.0, steps=10)))
    assert fit("sgd", new_context(), client=client).metrics["private-steps"] == 10


def test_only_a_seed_that_was_asked_for_fixes_the_noise():
    with pytest.warns(UserWarning, match="take the noise off"):
        one, two = (fit(SEARCH, new_context()).arrays["weight"] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    free = SEARCH.replace(", noise-seed=1", "")
    one, two = (fit(free, new_context()).arrays["weight"] for _ in range(2))
    assert not np.array_equal(one, two)


def test_the_sum_is_that_of_autograd_example_by_example():
    model, loss = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), nn.CrossEntropyLoss()
    total = 0.0
    for x, y in zip(X[:20], MINE.targets[:20], strict=True):
        model.zero_grad()
        loss(model(x[None]), y[None]).backward()
        g = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        total = total + g * min(1.0, 0.3 / float(g.norm()))
    each = PerExample(model, loss)
    found = each.sum_of_clipped(X[:20], MINE.targets[:20], 0.3)
    np.testing.assert_allclose(found, total.numpy(), rtol=1e-5, atol=1e-7)
    losses = each.losses(X[:20], MINE.targets[:20])
    assert losses.mean() == pytest.approx(loss(model(X[:20]), MINE.targets[:20]).item(), rel=1e-5)
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    moved = each.losses(X[:20], MINE.targets[:20], found)
    each.move(found)
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    np.testing.assert_allclose(before - after, found, atol=1e-6)
    np.testing.assert_allclose(each.losses(X[:20], MINE.targets[:20]), moved)
    assert each.sum_of_clipped(X[:0], MINE.targets[:0], 0.3).tolist() == [0.0] * each.size
    assert len(each.losses(X[:0], MINE.targets[:0])) == 0


def test_what_mixes_examples_or_tells_more_is_refused():
    for layer in (nn.BatchNorm1d(3), nn.Dropout(0.5), nn.InstanceNorm1d(3, track_running_stats=1)):
        model = nn.Sequential(layer, nn.Linear(3, 2))
        with pytest.raises(ValueError, match=f"{type(layer).__name__}"):
            try_model("mine", model, MINE, named_optimizer("dp-sgd"), ClientSettings())
    with pytest.raises(ValueError, match="weight-decay"):
        fit("dp-sgd", new_context(), **{"weight-decay": 0.1})
    with pytest.raises(ValueError, match="the loss after training"):
        fit("dp-sgd", new_context(), **{"final-loss": True})
    for wrong in (
        *("epsilon=0", "epsilon=nan", "epsilon=true", "delta=1e-300", "clip=1e300"),
        *("steps=0.5", "steps=1000000001", "noise-seed=-2"),
    ):
        with pytest.raises(ValueError, match=r"^dp-sgd\(.*must be "):
            named_optimizer(f"dp-sgd({wrong})")
    with pytest.raises(ValueError, match="at least 1"):
        named_optimizer("private-line-search(growth=0.5)")
    with pytest.raises(ValueError, match="too little for any Renyi order"):
        PrivateSGD(epsilon=1e-9).check(ClientSettings())
    with pytest.raises(ValueError, match="shrink"):
        PrivateLineSearch(shrink=2.0)
    made = named_optimizer("dp-sgd")([nn.Parameter(torch.zeros(1))], ClientSettings())
    with pytest.raises(ValueError, match="not private"):
        made.step()


def test_neither_groups_nor_a_model_that_a_single_example_breaks_get_through():
    assert not ClientGroup(CLIENT, 2).takes({"local-optimizer": SEARCH})
    try_model("mine", nn.Linear(3, 2), MINE, named_optimizer("dp-sgd"), ClientSettings())

    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else -super().forward(x)

    with pytest.raises(ValueError, match="gradients of single examples fail"):
        PrivateSGD().try_on(Branching(3, 2), MINE, nn.CrossEntropyLoss())


def test_disagreeing_gradients_make_later_steps_cost_more_and_all_planned_steps_still_fit():
    epsilon, steps, growth = 0.4, 40, 1.3
    filter_, _ = PrivacyFilter.planned(epsilon, 1e-5, 0.01, steps, 0.2)
    first = filter_.bound / 4 / steps
    up, down = np.ones(3), -np.ones(3)
    for gradients, is_grown in ((up, down), True), ((up, up), False):
        budget = Budget(Plan(epsilon, 1e-5, steps, 0.01, 0.2, growth), "mine", RecordDict())
        costs = []
        while step := budget.next_step():
            costs.append(step.rdp(filter_.order))
            budget.pay(step)
            budget.compare(gradients[len(costs) % 2])
        assert len(costs) == steps
        assert sum(costs) <= filter_.bound
        assert budget.epsilon <= epsilon
        assert budget.left == pytest.approx(1 - sum(costs) / filter_.bound)
        # The rule once more: every second gradient points back, as far as the rest lasts.
        expected, grown = [first], 1.0
        for t in range(1, steps):
            rest = filter_.bound - sum(expected)
            if is_grown and t > 1 and (steps - t) * growth * grown * first <= rest:
                grown *= growth
            expected.append(grown * first)
        np.testing.assert_allclose(costs, expected, rtol=1e-5)
        assert max(costs) > 4 * first if is_grown else max(costs) == costs[0]


@SEEDED
def test_rounds_of_one_step_compare_their_gradient_with_that_of_the_round_before():
    noisy = PrivateLineSearch(epsilon=0.2, steps=40, growth=1.3, noise_seed=1)
    one, context, kept = ClientSettings(num_steps=1, batch_size=20), new_context(), []
    module = nn.Linear(3, 2)
    for _ in range(41):
        done = noisy.train(module, MINE, one, nn.CrossEntropyLoss(), context)
        kept.append(context.state.get("private-direction"))
        if done.is_spent:
            break
    assert done.is_spent
    assert done.steps == 40
    assert 0.15 < done.epsilon <= 0.2  # with steps of the first cost alone it is 0.126
    # As large as the model, and no longer than it is of use.
    assert all(x["gradient"].shape == (8,) for x in kept[:-1])
    assert kept[-1] is None
    context = new_context()
    noisy.train(
        module, MINE, ClientSettings(num_steps=2, batch_size=20), nn.CrossEntropyLoss(), context
    )
    assert "private-direction" not in context.state


@SEEDED
def test_a_private_client_hides_its_update_too_where_the_server_asks_for_local_privacy():
    told = {"local-noise": 1e-9, "local-clip": 1e-3}
    optimizer = "dp-sgd(epsilon=2.0, steps=10, noise-seed=1)"
    result = fit(optimizer, new_context(), **told)
    assert result.metrics == {"num-examples": 1, "local-noise": 1e-9}
    moved = np.concatenate([x.ravel() for x in result.arrays.values()])
    assert np.linalg.norm(moved) == pytest.approx(1e-3, rel=1e-3)


def test_an_attack_on_a_step_stays_below_its_epsilon_and_above_half_of_it():
    runs, delta, noise = 20_000, 1e-3, SeededNoise(7)
    step = PrivateStep(1.0, 1.2, search_epsilon=0.5)
    claimed = epsilon_of(step, 1, delta)
    scale = 2 / step.search_epsilon
    scores = []
    for member in (0.0, 1.0):  # its gradient has the norm C = 3, its loss falls by the most
        sums = noisy_sum(np.full(runs, 3.0 * member), 3.0, step.noise_multiplier, noise) / 3
        accepted = [first_above([member], scale, noise) == 0 for _ in range(runs)]
        law = [1 - (4 * np.exp(-x / scale / 2) - np.exp(-x / scale)) / 6 for x in (0.0, 1.0)]
        ratio = np.log(law[1] / law[0]), np.log((1 - law[1]) / (1 - law[0]))
        evidence = np.where(accepted, *ratio)
        scores.append((sums - 0.5) / step.noise_multiplier**2 + evidence)
    threshold = np.quantile(scores[0], 0.997)
    hits, alarms = (int((x > threshold).sum()) for x in (scores[1], scores[0]))
    # Confidence bounds (Clopper & Pearson 1934) on both rates, at 97.5 % each.
    least = stats.beta.ppf(0.025, hits, runs - hits + 1)
    most = stats.beta.ppf(0.975, alarms + 1, runs - alarms)
    attacked = np.log((least - delta) / most)
    assert claimed / 2 < attacked < claimed


def test_control_variates_are_refused():
    content = RecordDict({"control-variate": ArrayRecord({})})
    config = {"local-steps": 1, "batch-size": 2, "local-optimizer": "dp-sgd"}
    with pytest.raises(ValueError, match="control variates"):
        CLIENT.fit(config, START, content, new_context())


def test_local_privacy_hides_what_private_steps_send_as_well():
    told = {"local-noise": 0.5, "local-clip": 1e-9}
    sent = fit("dp-sgd(epsilon=20.0, steps=12)", new_context(), **told)
    assert sent.metrics == {"num-examples": 1, "local-noise": 0.5}
    assert 0.1 < np.abs(sent.arrays["weight"]).max() < 5
