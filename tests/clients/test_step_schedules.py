"""Learning rates and augmentations that follow a client's steps, against torch and by hand."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import nn

from fedexp.augmentation import PowerLaw, augmentations_of, augmented
from fedexp.choices import client_config
from fedexp.clients import ClientSettings, Examples, client_app, module_arrays, train
from fedexp.clients.groups import one_step
from fedexp.clients.trial import try_model
from fedexp.config import Config
from fedexp.records import from_record, to_record
from fedexp.simulation.grid import context_of

NOISE = "noise(scale=0.5, exponent=0.4)"
RUN = {
    **{"local-steps": 4, "batch-size": 5, "learning-rate": 0.2, "seed": 3, "server-round": 3},
    **{"learning-rate-exponent": 0.7, "learning-rate-offset": 2.0, "augmentation": NOISE},
}
RNG = torch.Generator().manual_seed(0)
IMAGES = Examples(torch.randn(30, 2, 6, 6, generator=RNG), torch.randint(3, (30,), generator=RNG))


def model(context=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3))


def fitted(net=model, examples=IMAGES, fit=None, optimizer=None, content=None, **config):
    app = client_app(net, lambda context: (examples, examples), optimizer)
    config = RUN | {name.replace("_", "-"): value for name, value in config.items()}
    context = context_of(2, 4, config, None)
    content = RecordDict() if content is None else content
    arrays = {k: x.copy() for k, x in module_arrays(net()).items()}
    config = app.trainer.config(content, context)
    result = (fit or type(app.trainer).fit)(app.trainer, config, arrays, content, context)
    return result, context


def by_torch(optimizer, config=RUN, net=model):
    """The steps as everyone writes them, with torch's scheduler of every step."""
    settings = ClientSettings.of(config)
    rng = np.random.default_rng([config["seed"], config["server-round"], 0])
    rng.integers(2**63)  # PyTorch's generator
    batches = settings.batches(len(IMAGES), rng)
    noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
    module = net()
    steps, first = optimizer(module.parameters()), (config["server-round"] - 1) * 4
    rate = torch.optim.lr_scheduler.LambdaLR(steps, lambda k: (first + k + 2.0) ** -0.7)
    for k, rows in enumerate(batches):
        inputs, targets = IMAGES.inputs[rows], IMAGES.targets[rows]
        sigma = 0.5 * (first + k + 1) ** -0.2  # the exponent is that of the variance
        inputs = inputs + sigma * torch.randn(inputs.shape, generator=noise)
        steps.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        steps.step()
        last = steps.param_groups[0]["lr"]
        rate.step()
    return module_arrays(module), last


def assert_close(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(np.asarray(found[name]), x, **tolerance)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.2),
    "torch.optim.SGD(momentum=0.9)": lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.9),
    "adamw(lr=0.01)": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_client_takes_the_steps_of_torch_under_a_scheduler_and_noise(name):
    result, _ = fitted(local_optimizer=name, optimizer=None if name == "sgd" else name)
    arrays, last = by_torch(OPTIMIZERS[name])
    assert_close(result.arrays, arrays, rtol=1e-5, atol=1e-6)
    assert result.metrics["learning-rate"] == pytest.approx(last, rel=1e-12)


def test_groups_of_parameters_keep_the_ratio_of_their_rates():
    def two(params, settings):
        first, *others = params
        groups = [{"params": [first], "lr": 0.4}, {"params": others}]
        return torch.optim.SGD(groups, lr=settings.lr)

    result, _ = fitted(optimizer=two)
    expected, _ = by_torch(lambda params: two(params, ClientSettings(lr=0.2)))
    assert_close(result.arrays, expected, rtol=1e-5, atol=1e-6)


def test_the_steps_of_a_round_go_on_where_those_of_the_last_ended():
    law = PowerLaw(0.2, 0.7, 2.0)
    rates = [ClientSettings.of(RUN | {"server-round": r}).rates() for r in (1, 2, 3)]
    assert np.concatenate(rates).tolist() == [law(t) for t in range(12)]
    assert ClientSettings.of({"server-round": 9}).rates() == [0.1] * 20


def test_what_is_changed_follows_from_the_round_alone():
    """Nothing is kept: a client that trains in round 3 alone does what it does after round 2."""
    first, context = fitted()
    assert not context.state
    again, _ = fitted()
    assert first.metrics == again.metrics
    for name, x in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], x)
    other, _ = fitted(seed=4)
    assert other.metrics["train-loss"] != first.metrics["train-loss"]


def test_noise_of_strength_nothing_leaves_every_bit_as_it_is():
    """The augmentations have a stream of their own, and draw after the batches."""
    plain = {"learning_rate_exponent": 0.0, "learning_rate_offset": 1.0}
    without, _ = fitted(augmentation="", **plain)
    zero, _ = fitted(augmentation="noise(scale=0)", **plain)
    assert without.metrics == zero.metrics
    for name, x in without.arrays.items():
        np.testing.assert_array_equal(zero.arrays[name], x)


CHANGES = [NOISE, "flip, crop(scale=0.3, exponent=0.2)", "jitter, projection(exponent=1), noise"]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("round_", [1, 5])
def test_a_single_step_is_the_plain_loops(changes, round_):
    settings = {"local_steps": 1, "augmentation": changes, "server_round": round_}
    alone, _ = fitted(**settings)
    single, _ = fitted(fit=one_step.fit, **settings)
    assert single.metrics == pytest.approx(alone.metrics, rel=1e-5)
    assert single.metrics["learning-rate"] == pytest.approx(0.2 * (round_ + 1) ** -0.7)
    assert_close(single.arrays, alone.arrays, rtol=1e-4, atol=1e-6)


def test_images_that_lie_channels_last_are_changed_alike():
    def cnn(context=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
            return nn.Sequential(*layers)

    last = Examples(IMAGES.inputs.contiguous(memory_format=torch.channels_last), IMAGES.targets)
    settings = {"augmentation": "flip, crop, jitter, noise(scale=0.1)"}
    results = [fitted(cnn, examples, **settings)[0] for examples in (IMAGES, last)]
    assert_close(results[1].arrays, results[0].arrays, rtol=1e-4, atol=1e-6)


def test_neither_the_final_loss_nor_an_evaluation_is_augmented():
    settings = {"augmentation": "noise(scale=100)", "learning_rate": 1e-12, "final_loss": True}

    def line(context=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(72, 3))

    result, _ = fitted(line, **settings)
    clean = nn.functional.cross_entropy(line()(IMAGES.inputs), IMAGES.targets)
    assert result.metrics["final-loss"] == pytest.approx(float(clean.detach()), rel=1e-4)
    assert result.metrics["train-loss"] > 10 * float(clean.detach())


def test_control_variates_divide_by_the_sum_of_the_rates():
    """With gradients ``g`` that are the same everywhere, ``cᵢ`` becomes ``g``."""

    def line(context=None):
        return nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))

    app = client_app(
        line,
        lambda context: (Examples(torch.tensor([[1.0, -2.0]] * 4), torch.ones(4)),) * 2,
        loss=lambda outputs, targets: (outputs * targets).mean(),
    )
    zero = {"0.weight": np.zeros((1, 2), np.float32)}
    content = RecordDict({"arrays": to_record(zero), "control-variate": to_record(zero)})
    config = RUN | {"augmentation": ""}
    context = context_of(2, 4, config, None)
    result = app.trainer.fit(config, zero, content, context)
    rates = [0.2 * (8 + k + 2.0) ** -0.7 for k in range(4)]
    assert result.metrics["control-step"] == pytest.approx(sum(rates), rel=1e-12)
    assert isinstance(context.state["control-variate"], ArrayRecord)
    (own,) = from_record(context.state["control-variate"]).values()
    np.testing.assert_allclose(own, [[1.0, -2.0]], rtol=1e-5)


def test_a_trained_model_gets_the_augmentation_named():
    settings, rows = ClientSettings(4, 5, augmentation=NOISE), np.random.default_rng(0)
    net = model()
    train(
        net, IMAGES, settings, torch.optim.SGD(net.parameters(), 0.1), nn.CrossEntropyLoss(), rows
    )
    again = np.random.default_rng(0)
    order = settings.batches(30, again)
    generator = torch.Generator().manual_seed(int(again.integers(2**63)))
    other = model()
    sgd = torch.optim.SGD(other.parameters(), 0.1)
    for k, picked in enumerate(order):
        inputs = augmented(IMAGES.inputs[picked], augmentations_of(NOISE), k, generator)
        sgd.zero_grad()
        nn.functional.cross_entropy(other(inputs), IMAGES.targets[picked]).backward()
        sgd.step()
    assert_close(module_arrays(net), module_arrays(other), rtol=1e-6, atol=1e-7)


WRONG = [
    ({"augmentation": "mixup"}, "augmentation 'mixup': unknown. Known: ['crop', 'flip', "),
    ({"augmentation": "noise(scale=-1)"}, "noise(scale=-1): must be >= 0."),
    (
        {"learning-rate-exponent": -1.0},
        "ClientSettings(learning-rate-exponent=-1.0): must be at least 0.",
    ),
    (
        {"learning-rate-exponent": "fast"},
        "ClientSettings(learning-rate-exponent='fast'): must be a number.",
    ),
    (
        {"learning-rate-exponent": float("nan")},
        "ClientSettings(learning-rate-exponent=nan): must be a finite number.",
    ),
    (
        {"learning-rate-offset": 0.0},
        "ClientSettings(learning-rate-offset=0.0): must be greater than 0.",
    ),
    (
        {"learning-rate-offset": 5.0},
        "ClientSettings(learning-rate-offset=5.0): a rate without learning-rate-exponent does not",
    ),
    (
        {"learning-rate-exponent": 0.5, "learning-rate-decay": 0.9},
        "ClientSettings(learning-rate-exponent=0.5): learning-rate-decay=0.9 is a schedule too.",
    ),
]


@pytest.mark.parametrize(("settings", "line"), WRONG)
def test_a_setting_that_cannot_be_is_refused_in_one_line(settings, line):
    with pytest.raises(ValueError, match=r"\w") as error:
        ClientSettings.of(settings)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


CONFLICTS = [
    ({"local_optimizer": "hypersgd"}, "hypersgd tunes its own rate. Use 0, or another"),
    ({"local_optimizer": "delta-sgd"}, "delta-sgd tunes its own rate. Use 0, or another"),
    ({"scheduler": "cosine"}, "learning-rate-exponent=0.5 is a schedule too. Leave one of"),
    ({"learning_rate_decay": 0.9}, "learning-rate-decay=0.9 is a schedule too. Leave one of"),
]


@pytest.mark.parametrize(("settings", "line"), CONFLICTS)
def test_two_schedules_of_one_rate_are_refused_before_a_run(settings, line):
    config = Config(strategy="fedexp", learning_rate_exponent=0.5, **settings)
    with pytest.raises(ValueError, match=line):
        client_config(config, "fedexp")


def test_so_they_are_at_a_client():
    with pytest.raises(ValueError, match="hypersgd tunes its own rate"):
        fitted(local_optimizer="hypersgd")


def test_an_optimizer_without_a_rate_is_refused():
    class Signs:
        def __init__(self, params, settings):
            self.param_groups = [{"params": list(params)}]

        def step(self):
            pass

    with pytest.raises(ValueError, match=r"Signs takes no learning rate for every step"):
        fitted(optimizer=lambda params, settings: Signs(params, settings))
    with pytest.raises(ValueError, match=r"Rprop takes no learning rate for every step"):
        fitted(optimizer="rprop")


def short(batch, strength, generator):
    return batch[1:]


def whole(batch, strength, generator):
    return batch.long()


def nothing(batch, strength, generator):
    return None


TOKENS = Examples(torch.randint(9, (30, 72)), IMAGES.targets)
FLAT = Examples(IMAGES.inputs.flatten(1), IMAGES.targets)
UNFIT = [
    (TOKENS, "noise", "changes floating-point inputs, these are int64, as tokens are. Leave it"),
    (FLAT, "crop", "random_crop: a batch of shape [3, 72] holds no images [b, c, h, w]."),
    (IMAGES, "flip(scale=2)", "random_flip(strength=2): must lie in [0, 1]."),
    (IMAGES, "projection(rank=73)", "must be an integer from 0 to n = 72."),
    (FLAT, f"{__name__}:short", "gives torch.float32 [2, 72] for a batch torch.float32 [3, 72]."),
    (FLAT, f"{__name__}:whole", "gives torch.int64 [3, 72] for a batch torch.float32 [3, 72]."),
    (FLAT, f"{__name__}:nothing", "gives None for a batch torch.float32 [3, 72]. Return one of"),
]


@pytest.mark.parametrize(("examples", "changes", "line"), UNFIT)
def test_inputs_that_cannot_be_augmented_are_refused_before_a_run(examples, changes, line):
    settings = ClientSettings(augmentation=changes)
    with pytest.raises(ValueError, match=r"\w") as error:
        try_model("own", model(), examples, lambda p, s: torch.optim.SGD(p, s.lr), settings)
    assert str(error.value).startswith(f"ClientSettings(augmentation={changes!r}): ")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_so_they_are_at_a_client_that_nobody_tried():
    with pytest.raises(ValueError, match="these are int64"):
        fitted(examples=TOKENS)
