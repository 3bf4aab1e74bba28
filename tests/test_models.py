import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from fedexp.datasets import Dataset, load
from fedexp.models import MODELS, build


def dataset(shape, num_classes):
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % num_classes if num_classes else torch.zeros(6)
    return Dataset((x, y), (x, y), num_classes)


def characters():
    x = (5 * torch.arange(6).unsqueeze(1) + torch.arange(20)).to(torch.uint8) % 30
    return Dataset((x, torch.arange(6)), (x, torch.arange(6)), 30)


def fitting(name):
    if name == "char-lstm":
        return characters()
    return dataset((1, 28, 28) if name == "emnist-cnn" else (3, 8, 8), 7)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_fits_inputs_and_classes(name):
    data = fitting(name)
    assert build(name, data)(data.train[0]).shape == (6, data.num_classes)


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "emnist-cnn", "resnet18"])
def test_a_regression_gives_one_number_per_example(name):
    data = dataset((1, 28, 28), 0)
    assert build(name, data)(data.train[0]).shape == (6,)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_parameters(name):
    data = fitting(name)
    before = torch.random.get_rng_state()
    one, same, other = (
        nn.utils.parameters_to_vector(build(name, data, seed=seed).parameters())
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (name == "linear")  # which starts at zero


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"char-lstm"}))
def test_gradients_of_many_models_at_once_are_those_of_each(name):
    data = fitting(name)
    models = [build(name, data, seed=seed).eval().double() for seed in range(3)]
    params, _ = stack_module_state(models)
    x, y = data.train[0].double(), data.train[1]

    def loss(params, x, y):
        return nn.functional.cross_entropy(functional_call(models[0], params, (x,)), y)

    together = vmap(grad(loss), in_dims=(0, None, None))(params, x, y)
    for i, model in enumerate(models):
        alone = grad(loss)(dict(model.named_parameters()), x, y)
        for key, value in alone.items():
            assert torch.allclose(together[key][i], value)


@pytest.mark.parametrize("name", MODELS)
def test_no_model_has_buffers(name):
    assert not list(build(name, fitting(name)).buffers())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("linear", (1, 28, 28), 10, 7_850),
        ("emnist-cnn", (1, 28, 28), 62, 1_206_590),  # Reddi et al. 2021, table 3
        ("resnet18", (3, 32, 32), 10, 11_173_962),  # the form for CIFAR
    ],
)
def test_known_models_have_their_known_number_of_parameters(name, shape, classes, count):
    model = build(name, dataset(shape, classes))
    assert sum(p.numel() for p in model.parameters()) == count


def test_every_block_of_the_residual_network_is_group_normed():
    model = build("resnet18", dataset((3, 32, 32), 10))
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20  # a stem, two per block, three projections
    assert {m.num_groups for m in norms} == {2}


def test_the_lstm_learns_an_alphabet_by_heart():
    data = characters()
    model = build("char-lstm", data)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train[0]), data.train[1]).backward()
        optimizer.step()
    assert torch.equal(model(data.train[0]).argmax(1), data.train[1])


def test_a_function_of_the_user_is_imported():
    data = load("digits")
    assert isinstance(build("fedexp.models:mlp", data), nn.Sequential)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cnnn", dataset((4,), 3), r"name='cnnn'\): unknown model. Known: linear, mlp, cnn"),
        ("nowhere:model", dataset((4,), 3), "No module named 'nowhere'"),
        ("fedexp.models:nothing", dataset((4,), 3), "no attribute 'nothing'"),
        ("cnn", dataset((4,), 3), r"cnn\(input_shape=\(4,\)\): must be images"),
        ("emnist-cnn", dataset((1, 4, 4), 3), "at least 6 x 6"),
        ("char-lstm", dataset((4,), 3), "does not fit a dataset of numbers"),
        ("mlp", characters(), "does not fit a dataset of characters"),
    ],
)
def test_a_model_that_does_not_fit_is_an_error(name, data, message):
    with pytest.raises(ValueError, match=message):
        build(name, data)


def test_a_linear_model_is_logistic_regression():
    data = dataset((4,), 3)
    model = build("linear", data)
    w = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(w))
        model[1].bias.copy_(torch.ones(3))
    x = data.train[0].numpy()
    assert np.allclose(model(data.train[0]).detach().numpy(), x @ w.T + 1, atol=1e-6)
