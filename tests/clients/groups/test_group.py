"""A group of clients trained at once against the same clients trained one by one."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedexp.clients import Examples, client_app, module_arrays
from fedexp.clients.client import model_in
from fedexp.clients.groups.comparison import what_differs
from fedexp.clients.groups.group import ClientGroup
from fedexp.records import from_record, to_record
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import context_of
from fedexp.wire import ClientResult

NUM_NODES, CLASSES = 6, 3
CONFIG = {"seed": 3, "local-steps": 4, "batch-size": 5, "learning-rate": 0.1}
RNG = torch.Generator().manual_seed(0)
INPUTS = torch.randn(80, 1, 6, 6, generator=RNG)
TARGETS = torch.randint(CLASSES, (80,), generator=RNG)


def shared(context):
    p = context.node_config["partition-id"]
    examples = Examples(INPUTS, TARGETS, torch.arange(p, 80, NUM_NODES)[: 3 + 2 * p])
    return examples, examples


def own(context):
    """The same examples, in tensors of each client's own."""
    examples, _ = shared(context)
    mine = Examples(*examples.take(torch.arange(len(examples))))
    return mine, mine


def linear(context=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))


def mlp(context=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def cnn(context=None):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)
    )


def regression(context=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.Flatten(0))


def round_of(model, data=shared, **config):
    """Messages and contexts of a round, the app, and its contexts."""
    app, config = client_app(model, data), CONFIG | config
    contexts = [context_of(node, NUM_NODES, config, None) for node in range(2, 2 + NUM_NODES)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        content = _content(to_record(module_arrays(model())))
    messages = [Message(content, context.node_id, "train") for context in contexts]
    return app, messages, contexts


def _content(record):
    return RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 2})})


def both(model, data=shared, **config):
    app, messages, contexts = round_of(model, data, **config)
    together = ClientGroup.of(app, "on", contexts[0])
    return group(together, messages, contexts), [
        ClientResult(2, from_record(reply.content["arrays"]), dict(reply.content["metrics"]))
        for reply in (app(m, c) for m, c in zip(messages, contexts, strict=True))
    ]


def group(together, messages, contexts):
    content = messages[0].content
    config = together.client.config(content, contexts[0])
    return together.fit(config, model_in(content), content, contexts)


def assert_agree(together, alone):
    assert len(together) == len(alone)
    for a, b in zip(together, alone, strict=True):
        x, y = a.arrays, b.arrays
        assert list(x) == list(y)
        for name in y:
            assert x[name].dtype == y[name].dtype
            np.testing.assert_allclose(x[name], y[name], rtol=1e-4, atol=1e-6)
        assert a.metrics == pytest.approx(b.metrics, rel=1e-4)


OPTIONS = {
    "plain": {},
    "weight decay": {"weight-decay": 0.3},
    "decaying rate": {"learning-rate-decay": 0.5},
    "clipped": {"max-grad-norm": 0.1},
    "proximal": {"proximal-mu": 0.5},
    "final loss": {"final-loss": True},
    "falling rate": {"learning-rate-exponent": 0.6, "weight-decay": 0.1},
    "falling rate, clipped": {"learning-rate-exponent": 0.6, "max-grad-norm": 0.1},
    "noise": {"augmentation": "noise(exponent=0.33)"},
    "changed images": {"augmentation": "flip, crop(scale=0.3), jitter, projection(exponent=0.5)"},
    "all": {"weight-decay": 0.1, "max-grad-norm": 0.5, "proximal-mu": 0.1, "final-loss": True},
}


@pytest.mark.parametrize("model", [linear, mlp, cnn], ids=lambda f: f.__name__)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_group_trains_as_its_clients_do_alone(model, option):
    assert_agree(*both(model, **OPTIONS[option]))


def test_so_it_does_on_a_regression(monkeypatch):
    monkeypatch.setitem(globals(), "TARGETS", torch.randn(80))
    assert_agree(*both(regression))


def test_clients_may_hold_tensors_of_their_own():
    assert_agree(*both(mlp, own))


@settings(max_examples=10)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 99))
def test_any_steps_and_batches_even_larger_than_a_client(steps, batch, seed):
    config = {"local-steps": steps, "batch-size": batch, "seed": seed}
    assert_agree(*both(linear, **config))


def test_what_was_broadcast_is_not_touched():
    app, messages, contexts = round_of(mlp)
    before = {k: v.copy() for k, v in from_record(messages[0].content["arrays"]).items()}
    group(ClientGroup.of(app, "on", contexts[0]), messages, contexts)
    for name, x in from_record(messages[0].content["arrays"]).items():
        np.testing.assert_array_equal(x, before[name])


def test_a_client_whose_loss_explodes_fails_alone():
    def poisoned(context):
        train, test = own(context)
        if context.node_config["partition-id"] == 2:
            train = Examples(train.inputs * 1e30, train.targets)
        return train, test

    app, messages, contexts = round_of(linear, poisoned)
    fitted = group(ClientGroup.of(app, "on", contexts[0]), messages, contexts)
    failed = [bool(one.refused) for one in fitted]
    assert failed == [False, False, True, False, False, False]
    assert "use a smaller learning rate" in fitted[2].refused


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm1d(36), "BatchNorm1d keeps buffers"),
        (nn.Dropout(0.5), "Dropout draws or runs outside vmap"),
        (nn.LSTM(36, 4), "LSTM draws or runs outside vmap"),
    ],
)
def test_models_that_cannot_be_vectorised_say_why(layer, reason):
    app, _, contexts = round_of(linear)
    app = client_app(lambda context: nn.Sequential(nn.Flatten(), layer, linear()), shared)
    assert ClientGroup.of(app, "auto", contexts[0]) is None
    with pytest.raises(ValueError, match=rf"vectorize='on': {reason}. Use auto\."):
        ClientGroup.of(app, "on", contexts[0])


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_a_loss_that_draws_from_any_generator_of_numpy_is_noticed(kind):
    def noisy(outputs, targets):
        return functional.cross_entropy(outputs * np.random.normal(), targets)  # noqa: NPY002

    usual = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(0))
    try:
        reason = what_differs(linear(), noisy, [(INPUTS[:4], TARGETS[:4])] * 2)
        after = np.random.normal()  # noqa: NPY002
    finally:
        np.random.set_bit_generator(usual)
    assert reason == "forward or loss draw random numbers"
    assert after == np.random.RandomState(kind(0)).normal()


def test_frozen_parameters_and_foreign_apps_and_optimizers_run_one_by_one():
    _, _, contexts = round_of(linear)

    def frozen(context):
        model = linear()
        model[1].bias.requires_grad_(False)
        return model

    def momentum(params, settings):
        return torch.optim.SGD(params, lr=settings.lr, momentum=0.9)

    for app in client_app(frozen, shared), client_app(linear, shared, momentum), object():
        assert ClientGroup.of(app, "auto", contexts[0]) is None


def test_mods_of_the_client_app_see_every_message():
    _, _, contexts = round_of(linear)
    app = client_app(linear, shared, mods=[lambda message, context, call: call(message, context)])
    assert ClientGroup.of(app, "auto", contexts[0]) is None


def test_auto_takes_tiny_models_without_convolutions_and_off_takes_none():
    for model, mode, taken in (
        (linear, "auto", True),
        (mlp, "auto", True),
        (cnn, "auto", False),
        (linear, "off", False),
        (lambda context: nn.Sequential(nn.Flatten(), nn.Linear(36, 40_000)), "auto", False),
    ):
        app = client_app(model, shared)
        context = context_of(2, NUM_NODES, CONFIG, None)
        assert (ClientGroup.of(app, mode, context) is not None) == taken


def test_an_unknown_mode_is_refused():
    with pytest.raises(
        ValueError, match=r"SerialGrid\(vectorize='perhaps'\): must be one of auto,"
    ):
        SerialGrid(round_of(linear)[0], 2, vectorize="perhaps")
