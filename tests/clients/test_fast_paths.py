"""Clients alone and in groups against a plain loop, over models and losses of many kinds."""

from random import getstate

import numpy as np
import plain_loop
import pytest
import torch
import zoo
from flwr.app import RecordDict
from torch import nn
from torch.nn.modules import module as global_hooks

from fedexp.clients import ClientSettings, client_app, default_loss, module_arrays
from fedexp.clients.groups.group import ClientGroup
from fedexp.clients.known import is_torchs
from fedexp.simulation.grid import FIRST_NODE_ID, context_of
from fedexp.simulation.worker import Worker

CLIENTS = 2
RUN = {"seed": 3, "local-steps": 3, "batch-size": 5, "learning-rate": 0.1}
PLAIN = {"local-steps": 3}, {"local-steps": 1}
TUNED = {"hyper-learning-rate": 1e-12, "learning-rate": 0.01}
OTHERS = (
    {"weight-decay": 0.1, "proximal-mu": 0.5, "max-grad-norm": 0.3},
    {"local-optimizer": "hypersgd", "weight-decay": 0.1} | TUNED,
    {"local-optimizer": "hyperadam", "proximal-mu": 0.5} | TUNED,
    {"local-optimizer": "delta-sgd", "learning-rate": 0.5, "local-steps": 4},
    {"local-optimizer": "hyperadamw", "weight-decay": 0.1} | TUNED,
    {"local-optimizer": "hyperrmsprop"} | TUNED,
    {"local-optimizer": "fedhyper"},
    {"local-optimizer": "hyperadagrad"} | TUNED,
    {"local-optimizer": "delta-sgd", "learning-rate": 0.5, "proximal-mu": 0.2},
    {"local-optimizer": "momentum"},
)


seed_numbers = torch.default_generator.manual_seed  # torch.manual_seed takes a millisecond


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        seed_numbers(7)
        return make()


def momentum(params, settings):
    return torch.optim.SGD(params, settings.lr, momentum=0.9)


DEFAULT, _, _ = zoo.LOSSES["default"]


class Federation:
    """Clients of one model and loss."""

    def __init__(self, model, loss=DEFAULT, inputs="vectors", targets="classes", **run):
        self.made, self.model, self.loss = [], model, loss
        self.data = lambda client: zoo.examples(client, inputs, targets)
        own = momentum if run.get("local-optimizer") == "momentum" else None
        self.app = client_app(
            self._model,
            lambda context: (self.data(context.node_config["partition-id"]),) * 2,
            own,
            loss(lambda: self.made[-1]),
        )
        self.run = RUN | run
        self.worker = Worker(self.app, CLIENTS, self.run, "auto")
        self.arrays = {k: x.copy() for k, x in module_arrays(seeded(model)).items()}
        nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + CLIENTS)
        self.contexts = [context_of(node, CLIENTS, self.run, RecordDict()) for node in nodes]

    def _model(self, context):
        self.made.append(seeded(self.model))
        return self.made[-1]

    def alone(self):
        trainer = self.app.trainer
        return [trainer.fit(self.run, self.arrays, RecordDict(), c) for c in self.contexts]

    def together(self):
        return self.worker.group.fit(self.run, self.arrays, RecordDict(), self.contexts)

    def plainly(self, context):
        """The trained model, and the mean loss."""
        settings = ClientSettings.of(self.run)
        rng = self.app.trainer.generator(self.run, context)
        with torch.random.fork_rng(devices=[]):
            model = seeded(self.model)
            seed_numbers(int(rng.integers(2**63)))
            mine = self.data(context.node_config["partition-id"])
            rows = torch.from_numpy(settings.batches(len(mine), rng))
            loss = self.loss(lambda: model)
            return model, plain_loop.train(model, loss, map(mine.take, rows), settings)

    def check(self, grouped=None, tolerance=1e-4):
        """Alone, in a group if they may, and alone again: who trained before leaves no trace."""
        before = {k: x.copy() for k, x in self.arrays.items()}
        _, reason = self.worker.group_size(FIRST_NODE_ID)
        if grouped is not None:
            assert (self.worker.group is not None) == grouped, reason
        expected = [self.plainly(context) for context in self.contexts]
        for way in (self.alone, *([self.together] if self.worker.group else []), self.alone):
            for fitted, (model, loss) in zip(way(), expected, strict=True):
                assert fitted.metrics["train-loss"] == pytest.approx(loss, rel=tolerance)
                wanted = module_arrays(model)
                assert list(fitted.arrays) == list(wanted)
                for name, x in wanted.items():
                    got = np.asarray(fitted.arrays[name])
                    np.testing.assert_allclose(got, x, tolerance, tolerance / 10, err_msg=name)
        for name, x in self.arrays.items():
            np.testing.assert_array_equal(x, before[name])


ONLY = {"sparse": PLAIN, "halves": (*PLAIN, *(OTHERS[i] for i in (0, 1, 3, 5, 6, 7)))}
"""What PyTorch's optimizers take too."""


def combinations(names):
    return [
        pytest.param(name, settings, id=f"{name}-{'-'.join(map(str, settings.values()))}")
        for i, name in enumerate(names)
        for settings in ONLY.get(name, (*PLAIN, OTHERS[0], OTHERS[1 + i % (len(OTHERS) - 1)]))
    ]


@pytest.mark.parametrize(("name", "settings"), combinations(zoo.MODELS))
def test_any_model_trains_as_in_a_plain_loop(name, settings):
    model, grouped = zoo.MODELS[name]
    if settings.get("local-optimizer") == "momentum":
        grouped = False
    federation = Federation(model, inputs=zoo.inputs_of(name), **settings)
    federation.check(grouped, zoo.TOLERANCE.get(name, 1e-4))


@pytest.mark.parametrize(("name", "settings"), combinations(zoo.LOSSES))
def test_any_loss_is_descended_on_as_in_a_plain_loop(name, settings):
    loss, targets, grouped = zoo.LOSSES[name]
    if settings.get("local-optimizer") == "momentum":
        grouped = False
    Federation(lambda: zoo.net(nn.Tanh()), loss, targets=targets, **settings).check(grouped)


HOOKS = {
    "before": lambda: global_hooks.register_module_forward_pre_hook(
        lambda m, x: (x[0] * 2, *x[1:])
    ),
    "after": lambda: global_hooks.register_module_forward_hook(lambda m, x, y: y * 2),
    "backward": lambda: global_hooks.register_module_full_backward_hook(
        lambda m, x, y: tuple(g if g is None else g * 3 for g in x)
    ),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("settings", [*PLAIN, OTHERS[3]], ids=["three", "one", "delta-sgd"])
def test_hooks_of_all_modules_run(kind, settings):
    handle = HOOKS[kind]()
    try:
        loss = zoo.plain(nn.CrossEntropyLoss())
        Federation(lambda: zoo.net(nn.Tanh()), loss, **settings).check(grouped=False)
    finally:
        handle.remove()


def test_a_loss_of_images_may_view_them():
    loss = zoo.plain(lambda x, y: default_loss(x.view(len(x), -1), y))
    Federation(lambda: nn.Conv2d(2, 2, 5), loss, inputs="images").check()


def test_clients_with_numbers_of_different_types_are_not_joined():
    federation = Federation(lambda: zoo.net(nn.Tanh()))
    federation.worker.group_size(FIRST_NODE_ID)
    federation.data = lambda client: zoo.examples(client, targets=["classes", "uint8"][client % 2])
    with pytest.raises(ValueError, match="different types"):
        federation.together()


def state():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), getstate()  # noqa: NPY002


def test_the_comparison_leaves_no_trace_and_says_the_same_every_time():
    found = set()
    for make in (zoo.MODELS["layers left out"], zoo.MODELS["residual"], zoo.MODELS["padding"]):
        federation = Federation(
            make[0], inputs="tokens" if make is zoo.MODELS["padding"] else "vectors"
        )
        module = federation.app.trainer.module(federation.contexts[0])
        before, arrays = state(), {k: x.copy() for k, x in module_arrays(module).items()}
        reasons = {federation.worker.group_size(FIRST_NODE_ID) for _ in range(3)}
        found |= reasons
        assert len(reasons) == 1
        assert state() == before
        for name, x in module_arrays(module).items():
            np.testing.assert_array_equal(x, arrays[name])
            assert module.get_parameter(name).grad is None
    assert {size > 1 for size, _ in found} == {True, False}
    assert "forward or loss draw random numbers" in {reason for _, reason in found}


def test_groups_that_are_asked_for_are_refused_with_what_they_would_do_otherwise():
    federation = Federation(zoo.MODELS["padding"][0], inputs="tokens")
    with pytest.raises(ValueError, match=r"vectorize='on': .*padding_idx.* Use auto\."):
        ClientGroup.of(federation.app, "on", federation.contexts[0])


def test_data_that_cannot_be_had_lets_clients_train_one_by_one():
    def data(context):
        raise OSError("no disk")

    app = client_app(lambda context: zoo.net(nn.LayerNorm(5)), data)
    assert Worker(app, 2, RUN, "auto").group_size(FIRST_NODE_ID) == (
        1,
        "the data of node 2 raised OSError",
    )


def test_a_forward_that_no_module_defines_is_none_of_pytorchs():
    class Net(nn.Sequential):
        def forward(self, x):
            return x

    Net.forward.__module__ = None  # as after `exec` with names of one's own
    Net.__module__ = "torch.nn.modules.container"
    assert not is_torchs(Net())
