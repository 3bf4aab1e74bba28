"""Plain SGD against torch's, and what it promises about memory."""

import numpy as np
import pytest
import torch
from torch import nn

from fedexp.clients import ClientSettings, Examples, client_app, default_loss
from fedexp.clients.loop import train
from fedexp.clients.module import copies, layout_of, lend, load_arrays, module_arrays
from fedexp.clients.optimizers import PlainSGD
from fedexp.models import resnet18
from fedexp.simulation.grid import context_of


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (4,), ())
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


def gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in params]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("idle", [(), (1,), (0, 1, 2)], ids=["all", "one idle", "all idle"])
def test_it_steps_as_torchs_sgd_does(weight_decay, idle):
    ours, theirs = parameters(), parameters()
    mine = PlainSGD(ours, 0.1, weight_decay)
    reference = torch.optim.SGD(theirs, lr=0.1, weight_decay=weight_decay)
    for seed in range(4):
        grads = [None if i in idle else g for i, g in enumerate(gradients(ours, seed))]
        for p, q, g in zip(ours, theirs, grads, strict=True):
            p.grad = q.grad = g
        mine.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q)


def test_a_parameter_that_wakes_up_later_steps_too():
    ours, theirs = parameters(), parameters()
    mine, reference = PlainSGD(ours, 0.1), torch.optim.SGD(theirs, lr=0.1)
    for seed, asleep in ((0, 0), (1, 2), (2, None)):
        for i, (p, q, g) in enumerate(zip(ours, theirs, gradients(ours, seed), strict=True)):
            p.grad = q.grad = None if i == asleep else g
        mine.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_the_memory_it_starts_in_stays_as_it_is():
    params = parameters()
    start = [p.data for p in params]
    before = [x.clone() for x in start]
    optimizer = PlainSGD(params, 0.1, 0.5)
    for seed in range(3):
        for p, g in zip(params, gradients(params, seed), strict=True):
            p.grad = g
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(start, before, strict=True))
    assert not any(torch.equal(p, x) for p, x in zip(params, start, strict=True))


class Counted(nn.Module):
    """A layer with a buffer that its forward pass writes to."""

    plain_forward = True

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += 1
        return self.layer(x)


def test_lent_parameters_are_shared_and_buffers_are_not():
    module = Counted()
    values = copies(module, {k: x.copy() for k, x in module_arrays(module).items()})
    lend(module, values)
    assert module.layer.weight.data_ptr() == values["layer.weight"].data_ptr()
    module(torch.zeros(1, 2))
    assert (float(module.seen), float(values["seen"])) == (1.0, 0.0)


def test_clients_of_a_round_that_share_a_copy_train_as_if_each_had_its_own():
    x, y = torch.randn(30, 2), torch.randn(30, 1)

    def data(context):
        return (Examples(x, y, torch.arange(context.node_config["partition-id"], 30, 3)),) * 2

    trainer = client_app(lambda context: Counted(), data).trainer
    arrays = {k: v.copy() for k, v in module_arrays(Counted()).items()}
    contexts = [context_of(node, 3, {"local-steps": 4}, None) for node in (2, 3, 4)]
    config = trainer.config({}, contexts[0])
    shared = [trainer.fit(config, arrays, {}, context) for context in contexts]
    own = [trainer.fit(config, dict(arrays), {}, context) for context in contexts]
    for a, b in zip(shared, own, strict=True):
        assert a.metrics == b.metrics
        for name in arrays:
            np.testing.assert_array_equal(a.arrays[name], b.arrays[name])


class Clamped(nn.Module):
    """A layer that keeps its weights small by writing to them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        self.layer.weight.data.mul_(0.5)
        return self.layer(x)


def test_a_forward_that_writes_to_its_weights_does_so_in_memory_of_its_own():
    data = (Examples(torch.ones(4, 2), torch.zeros(4, 1)),) * 2
    trainer = client_app(lambda context: Clamped(), lambda context: data).trainer
    arrays = {k: v.copy() for k, v in module_arrays(Clamped()).items()}
    context = context_of(2, 1, {"local-steps": 2}, None)
    config = trainer.config({}, context)
    first, second = (trainer.fit(config, arrays, {}, context).arrays for _ in range(2))
    for name in arrays:
        np.testing.assert_array_equal(first[name], second[name])


def image_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        return nn.Sequential(*layers)


def test_channels_last_changes_speed_and_neither_numbers_nor_the_arrays_order():
    images, labels = torch.randn(20, 2, 8, 8), torch.randint(3, (20,))
    assert layout_of(image_model())(images).is_contiguous(memory_format=torch.channels_last)
    settings = ClientSettings(5, 4, 0.1)
    ours = image_model()
    optimizer = PlainSGD(ours.parameters(), 0.1)
    train(
        ours, Examples(images, labels), settings, optimizer, default_loss, np.random.default_rng(1)
    )
    theirs = image_model()
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for rows in torch.from_numpy(settings.batches(20, np.random.default_rng(1))):
        reference.zero_grad()
        default_loss(theirs(images[rows]), labels[rows]).backward()
        reference.step()
    for name, x in module_arrays(ours).items():
        np.testing.assert_allclose(x, module_arrays(theirs)[name], rtol=1e-4, atol=1e-6)
        assert x.flags.c_contiguous


class Viewing(nn.Module):
    """A network as many tutorials write it: ``view`` needs the usual layout."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(144, 3)

    def forward(self, x):
        return self.head(self.conv(x).view(-1, 144))


def test_a_forward_of_ones_own_gets_the_usual_layout():
    images, labels = torch.randn(8, 2, 8, 8), torch.randint(3, (8,))
    model = Viewing()
    assert layout_of(model)(images) is images
    optimizer, settings = PlainSGD(model.parameters(), 0.1), ClientSettings(2, 4, 0.1)
    rng = np.random.default_rng(0)
    loss = train(model, Examples(images, labels), settings, optimizer, default_loss, rng)
    assert np.isfinite(loss)
    model.plain_forward = True
    assert layout_of(model)(images).is_contiguous(memory_format=torch.channels_last)


def test_our_residual_network_takes_any_layout():
    images = torch.randn(2, 3, 16, 16)
    model = resnet18((3, 16, 16), 4)
    laid_out = layout_of(model)(images)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(laid_out), model(images), rtol=1e-3, atol=1e-4)


def test_models_without_convolutions_keep_their_inputs_as_they_are():
    x = torch.randn(2, 3, 4, 4)
    assert layout_of(nn.Linear(4, 1))(x) is x
    layout = layout_of(image_model())
    vector = torch.randn(2, 3)
    assert layout(vector) is vector


def test_loaded_arrays_stay_the_callers():
    module, arrays = nn.Linear(2, 1), {"weight": np.ones((1, 2), np.float32), "bias": np.ones(1)}
    load_arrays(module, arrays)
    with torch.no_grad():
        module.weight += 1
    assert arrays["weight"].tolist() == [[1, 1]]
