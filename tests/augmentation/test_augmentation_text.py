"""Augmentations as text."""

import pytest
import torch

from fedexp.augmentation import (
    Augmentation,
    PowerLaw,
    augmentations_of,
    augmented,
    color_jitter,
    constant,
    gaussian_noise,
    random_crop,
    random_flip,
    random_projection,
    rank_projection,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("text", "function", "strength"),
    [
        # The exponent of noise is that of its variance: half of it is the standard deviation's.
        ("noise(exponent=0.33)", gaussian_noise, PowerLaw(1.0, 0.165)),
        ("noise(scale=0.5, offset=10)", gaussian_noise, PowerLaw(0.5, 0.0, 10)),
        ("projection(exponent=0.4)", random_projection, PowerLaw(0.5, 0.4)),
        ("projection(rank=3)", rank_projection, constant(3)),
        ("crop", random_crop, PowerLaw(0.125)),
        ("flip(exponent=1)", random_flip, PowerLaw(1.0, 1.0)),
        ("jitter(scale=0.2)", color_jitter, PowerLaw(0.2)),
    ],
)
def test_a_text_names_a_function_and_a_schedule(text, function, strength):
    change = Augmentation.of(text)
    assert change.strength == strength
    batch = torch.randn(3, 2, 4, 4, generator=generator(7))
    expected = function(batch, strength(20), generator())
    assert torch.equal(change(batch, 20, generator()), expected)


def test_several_are_applied_from_left_to_right_with_one_generator():
    batch = torch.randn(3, 2, 4, 4, generator=generator(7))
    changes = augmentations_of("flip, noise(scale=0.1, exponent=1)")
    shared = generator()
    expected = gaussian_noise(random_flip(batch, 1.0, shared), 0.1 * 5**-0.5, shared)
    assert torch.equal(augmented(batch, changes, 4, generator()), expected)
    assert augmentations_of("") == ()


def test_any_callable_is_a_schedule():
    change = Augmentation("fedexp.augmentation.transforms:gaussian_noise", lambda t: 0.1 * (t > 5))
    batch = torch.zeros(4, 3)
    assert torch.equal(change(batch, 5, generator()), batch)
    assert not torch.equal(change(batch, 6, generator()), batch)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mixup", "augmentation 'mixup': unknown. Known: ['crop', 'flip', 'jitter', 'noise', 'pro"),
        ("noise(sigma=1)", "noise: unknown ['sigma']. Known: ['scale', 'exponent', 'offset']."),
        ("noise(exponent=a)", "noise(exponent='a'): must be a finite number."),
        ("crop(scale=-1)", "crop(scale=-1): must be >= 0."),
        ("projection(rank=2, scale=1)", "projection: unknown ['rank']. Known: ['scale', 'expone"),
        ("projection(rank=1.5)", "projection(rank=1.5): must be an integer >= 0."),
        ("projection(rank=-1)", "projection(rank=-1): must be an integer >= 0."),
        ("noise(exponent=0.3", "'noise(exponent=0.3': a bracket is missing."),
    ],
)
def test_a_text_of_nonsense_is_refused_in_one_line(text, line):
    with pytest.raises(ValueError, match=r"\w") as error:
        augmentations_of(text)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def doubled_and_shaken(batch, strength, generator):
    """A function of one client alone."""
    assert isinstance(generator, torch.Generator)
    return 2 * batch + strength * torch.rand(batch.shape, generator=generator)


def test_a_function_of_ones_own_is_called_for_each_client_of_a_group():
    change = Augmentation.of(f"{__name__}:doubled_and_shaken(scale=0.5, exponent=1)")
    assert change.strength == PowerLaw(0.5, 1.0)
    group = torch.randn(3, 4, 2, generator=generator(7))
    found = change(group, 4, [generator(seed) for seed in range(3)])
    for seed in range(3):
        expected = doubled_and_shaken(group[seed], 0.1, generator(seed))
        assert torch.equal(found[seed], expected)
        assert torch.equal(change(group[seed], 4, generator(seed)), expected)
    with pytest.raises(ValueError, match=r"No module named .no_such"):
        Augmentation.of("no_such:function")(group, 0, generator())


def test_a_rank_above_n_is_refused_once_n_is_known():
    with pytest.raises(ValueError, match="must be an integer from 0 to n = 4"):
        Augmentation.of("projection(rank=5)")(torch.zeros(2, 4), 0, generator())
