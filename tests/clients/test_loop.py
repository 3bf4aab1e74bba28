"""The local loop against plain NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedexp import clients
from fedexp.clients import ClientSettings, Examples, default_loss, evaluate, sgd, train
from fedexp.config import Config

SIZES = st.integers(1, 40)


def regression(num_rows=17, num_features=3, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(num_rows, num_features)), rng.normal(size=(num_rows, 1))
    return x, y, Examples(torch.from_numpy(x), torch.from_numpy(y))


def linear(num_features=3):
    model = nn.Linear(num_features, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    return model


def trained(settings, examples, seed=3):
    model = linear()
    rng = np.random.default_rng(seed)
    optimizer = sgd(model.parameters(), settings)
    loss = train(model, examples, settings, optimizer, default_loss, rng)
    return model.weight.detach().numpy()[0], loss


def by_hand(settings, x, y, seed=3):
    """SGD on the mean squared error: clip the gradient, then add the decay, then step."""
    w, losses = np.ones(x.shape[1]), []
    for rows in settings.batches(len(x), np.random.default_rng(seed)):
        error = x[rows] @ w - y[rows, 0]
        losses.append(np.mean(error**2))
        g = 2 * x[rows].T @ error / len(rows)
        if settings.max_grad_norm:
            g *= min(1, settings.max_grad_norm / np.linalg.norm(g))
        w = w - settings.lr * (g + settings.weight_decay * w)
    return w, np.mean(losses)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_the_loop_is_sgd_as_written_by_hand(weight_decay, max_grad_norm, batch_size):
    x, y, examples = regression()
    settings = ClientSettings(7, batch_size, 0.05, weight_decay, max_grad_norm)
    w, loss = trained(settings, examples)
    expected_w, expected_loss = by_hand(settings, x, y)
    # Torch adds 1e-6 to the norm that it divides by.
    np.testing.assert_allclose(w, expected_w, rtol=1e-5)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 20])
@pytest.mark.parametrize("num_rows", [1, 3, 500])
def test_there_are_exactly_so_many_steps_whatever_the_data(num_steps, num_rows):
    calls = []
    _, _, examples = regression(num_rows)
    settings, model = ClientSettings(num_steps, 8, 0.01), linear()
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(model, examples, settings, optimizer, default_loss, np.random.default_rng(0))
    assert len(calls) == num_steps


@given(num_steps=SIZES, batch_size=SIZES, num_examples=SIZES, seed=st.integers(0, 9))
def test_batches_are_full_and_go_through_all_examples_before_any_again(
    num_steps, batch_size, num_examples, seed
):
    settings = ClientSettings(num_steps, batch_size)
    batches = settings.batches(num_examples, np.random.default_rng(seed))
    assert batches.shape == (num_steps, batch_size)
    for start in range(0, batches.size, num_examples):
        one_pass = batches.ravel()[start : start + num_examples].tolist()
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(num_examples))


def test_the_generator_fixes_the_batches_and_every_pass_is_shuffled_anew():
    settings = ClientSettings(4, 50)
    a, b = (settings.batches(50, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert len({tuple(row) for row in a.tolist()}) == 4
    assert not np.array_equal(a, settings.batches(50, np.random.default_rng(2)))


def test_only_the_clients_own_rows_are_used():
    x, y, _ = regression(20)
    x[10:], y[10:] = np.nan, np.nan
    own = torch.tensor([1, 4, 7])
    examples = Examples(torch.from_numpy(x), torch.from_numpy(y), own)
    assert len(examples) == 3
    w, _ = trained(ClientSettings(5, 2, 0.05), examples)
    expected, _ = by_hand(ClientSettings(5, 2, 0.05), x[own], y[own])
    np.testing.assert_allclose(w, expected, rtol=1e-9)


def test_settings_come_from_kebab_case_keys():
    keys = {
        "local-steps": 3,
        "batch-size": 4,
        "learning-rate": 0.5,
        "weight-decay": 0.1,
        "max-grad-norm": 10.0,
        "something-else": "ignored",
    }
    assert ClientSettings.of(keys) == ClientSettings(3, 4, 0.5, 0.1, 10.0)
    assert ClientSettings.of({}) == ClientSettings()


@pytest.mark.parametrize("server_round", [1, 2, 50])
def test_the_learning_rate_decays_every_round_from_the_first(server_round):
    keys = {"learning-rate": 0.1, "learning-rate-decay": 0.998, "server-round": server_round}
    assert ClientSettings.of(keys).lr == pytest.approx(0.1 * 0.998**server_round)


def test_evaluation_is_over_all_examples_whatever_the_batch_size():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(23, 4)))
    labels = torch.from_numpy(rng.integers(0, 3, 23))
    model = nn.Linear(4, 3, dtype=torch.float64)
    logits = (x @ model.weight.T + model.bias).detach().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = {
        "loss": -log_p[np.arange(23), labels].mean(),
        "accuracy": (logits.argmax(1) == labels.numpy()).mean(),
    }
    for batch_size in (1, 10, 1024):
        got = evaluate(model, Examples(x, labels), default_loss, batch_size)
        assert got == pytest.approx(expected)


def test_a_regression_has_a_loss_and_no_accuracy():
    x, y, examples = regression()
    error = x.sum(1) - y[:, 0]
    assert evaluate(linear(), examples, default_loss) == pytest.approx({"loss": np.mean(error**2)})


def test_dropout_is_on_in_training_and_off_in_evaluation():
    modes = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 1, dtype=torch.float64))

        def forward(self, x):
            modes.append(self.training)
            return x @ self.w

    _, _, examples = regression()
    model, settings = Spy(), ClientSettings(1, 2, 0.1)
    optimizer = sgd(model.parameters(), settings)
    train(model, examples, settings, optimizer, default_loss, np.random.default_rng(0))
    evaluate(model, examples, default_loss)
    assert modes == [True, False]


@pytest.mark.parametrize("width", [1, 3])
def test_targets_in_a_column_are_those_of_a_vector(width):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=rng)
    y = torch.randint(3, (12,), generator=rng) if width > 1 else torch.randn(12, generator=rng)
    got = []
    for targets in (y, y[:, None]):
        model = nn.Linear(2, width)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        settings, examples = ClientSettings(5, 4, 0.1), Examples(x, targets)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, examples, settings, optimizer, default_loss, np.random.default_rng(0))
        got.append((model.weight.detach(), evaluate(model, examples, default_loss)))
    assert torch.equal(got[0][0], got[1][0])
    assert got[0][1] == got[1][1]


def test_outputs_that_score_no_classes_have_no_accuracy():
    loss = lambda outputs, targets: (outputs[0] - targets).square().mean()  # noqa: E731
    model = nn.LSTM(2, 1)  # returns a tuple
    found = evaluate(model, Examples(torch.ones(4, 2), torch.ones(4, 1).long()), loss)
    assert found.keys() == {"loss"}


def test_examples_that_do_not_belong_together_are_refused():
    with pytest.raises(
        ValueError, match=r"Examples\(targets=\[3\]\): must be as many as inputs, 4"
    ):
        Examples(torch.ones(4, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"Examples\(ndarray, Tensor\): must be tensors"):
        Examples(np.ones((4, 2)), torch.ones(4))


def test_without_examples_nothing_is_trained_or_tested():
    none = Examples(torch.ones(4, 2), torch.ones(4), torch.arange(0))
    with pytest.raises(ValueError, match="no training examples"):
        ClientSettings().batches(len(none), np.random.default_rng(0))
    with pytest.raises(ValueError, match="no examples to test on"):
        evaluate(nn.Linear(2, 1), none, default_loss)


def test_a_client_that_is_told_nothing_trains_as_a_run_does():
    assert ClientSettings.of({}) == ClientSettings() == ClientSettings.of(Config().values())


@pytest.mark.parametrize(
    ("earlier", "name"),
    [
        ("LocalTraining", "ClientSettings"),
        ("ScheduledSGD", "FedHyperSGD"),
        ("Trainer", "Client"),
        ("sgd", "plain_sgd"),
    ],
)
def test_names_of_earlier_versions_are_the_same_objects(earlier, name):
    assert getattr(clients, earlier) is getattr(clients, name)
