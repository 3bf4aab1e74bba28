"""The augmentations: their distribution, groups of clients, seeds, and bad input."""

import math

import pytest
import torch

from fedexp.augmentation import (
    color_jitter,
    gaussian_noise,
    random_crop,
    random_flip,
    random_projection,
    rank_projection,
)

ALL = (gaussian_noise, random_projection, random_crop, random_flip, color_jitter)
IMAGES = (random_crop, random_flip, color_jitter)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=9):
    return torch.randn(*(shape or (5, 3, 6, 4)), generator=generator(seed))


@pytest.mark.parametrize("change", ALL)
def test_a_seed_gives_the_same_change_and_the_batch_is_left_as_it_is(change):
    batch = images()
    before = batch.clone()
    once, again = (change(batch, 0.6, generator(4)) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(batch, before)
    assert once.shape == batch.shape
    assert once.dtype == batch.dtype
    assert not torch.equal(once, batch)
    assert not torch.equal(once, change(batch, 0.6, generator(5)))


@pytest.mark.parametrize("change", ALL)
def test_a_strength_of_nothing_changes_nothing(change):
    batch = images()
    torch.testing.assert_close(change(batch, 0.0, generator()), batch, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", ALL)
def test_a_client_in_a_group_gets_what_it_gets_alone(change):
    group, strengths = images(3, 5, 3, 6, 4), torch.tensor([0.7, 0.2, 0.0])
    found = change(group, strengths, [generator(seed) for seed in range(3)])
    same = change(group, 0.7, [generator(seed) for seed in range(3)])
    for i in range(3):
        alone = change(group[i], float(strengths[i]), generator(i))
        torch.testing.assert_close(found[i], alone, rtol=1e-6, atol=1e-6)
        alone = change(group[i], 0.7, generator(i))
        torch.testing.assert_close(same[i], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", ALL)
def test_the_global_generator_is_not_touched(change):
    before = torch.random.get_rng_state()
    change(images(), 0.5, generator())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_has_the_standard_deviation_asked_for():
    added = gaussian_noise(torch.ones(200, 100), 0.3, generator()) - 1
    assert abs(float(added.mean())) < 5 * 0.3 / math.sqrt(20_000)
    assert float(added.var()) == pytest.approx(0.09, abs=5 * 0.09 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize("rank", [0, 1, 4, 5])
def test_a_projection_has_its_rank_and_is_one(rank):
    p = rank_projection(torch.eye(5, dtype=torch.float64), rank, generator())
    torch.testing.assert_close(p @ p, p)
    torch.testing.assert_close(p, p.mT)
    assert float(p.trace()) == pytest.approx(rank, abs=1e-12)


def test_all_examples_of_a_batch_are_projected_onto_one_subspace():
    x = torch.randn(40, 6, generator=generator(1), dtype=torch.float64)
    assert int(torch.linalg.matrix_rank(rank_projection(x, 2, generator()))) == 2


@pytest.mark.parametrize("dropped", [0.02, 0.25, 0.5, 0.9])
def test_a_random_rank_is_one_of_two_neighbours_and_has_its_mean(dropped):
    runs, n = 3000, 4
    eye = torch.eye(n, dtype=torch.float64).expand(runs, n, n)
    p = random_projection(eye, dropped, [generator(seed) for seed in range(runs)])
    ranks = p.diagonal(dim1=1, dim2=2).sum(1).round()
    kept = n * (1 - dropped)
    assert set(ranks.tolist()) <= {math.floor(kept), math.ceil(kept)}
    chance = kept - math.floor(kept)
    error = 5 * math.sqrt(chance * (1 - chance) / runs)
    assert float(ranks.mean()) == pytest.approx(kept, abs=error + 1e-12)


def test_a_projection_sees_an_image_as_one_vector():
    batch = images(7, 2, 3, 2).double()
    flat = random_projection(batch.flatten(1), 0.3, generator())
    torch.testing.assert_close(random_projection(batch, 0.3, generator()).flatten(1), flat)


def test_a_crop_is_a_shift_filled_with_zeros():
    batch = images(400, 2, 6, 4)
    found, seen = random_crop(batch, 0.5, generator()), set()
    for before, after in zip(batch, found, strict=True):
        shifts = [
            (i, j)
            for i in range(-3, 4)
            for j in range(-2, 3)
            if torch.equal(shifted(before, i, j), after)
        ]
        assert len(shifts) == 1
        seen |= set(shifts)
    assert seen == {(i, j) for i in range(-3, 4) for j in range(-2, 3)}


def shifted(image, down, right):
    """By padding with zeros on one side and cutting off as much on the other."""
    return torch.nn.functional.pad(image, (right, -right, down, -down))


@pytest.mark.parametrize("strength", [0.01, 0.1, 0.4])
def test_the_mean_shift_is_half_the_largest_however_small(strength):
    size, number = 10, 4000
    marked = torch.zeros(number, 1, size, size)
    marked[:, :, 5] = 1.0  # a line that no shift moves out of sight
    moved = random_crop(marked, strength, generator()).amax((1, 3))
    rows = moved.argmax(1).double() - 5
    error = 5 * float(rows.std()) / math.sqrt(number)
    assert float(rows.abs().mean()) == pytest.approx(strength * size / 2, abs=error)
    assert float(rows.mean()) == pytest.approx(0.0, abs=error)


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_a_flip_mirrors_half_the_strength_of_the_images(strength):
    batch = images(3000, 1, 2, 3)
    found = random_flip(batch, strength, generator())
    mirrored = (found == batch.flip(-1)).flatten(1).all(1)
    same = (found == batch).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    p = strength / 2
    assert float(mirrored.double().mean()) == pytest.approx(
        p, abs=5 * math.sqrt(p * (1 - p) / 3000)
    )


def test_jitter_is_brightness_contrast_and_saturation_of_each_image_alone():
    batch = images(6, 3, 4, 4).double()
    found = color_jitter(batch, 0.4, generator())
    draws = 1 + 0.4 * (2 * torch.rand(6, 3, generator=generator(), dtype=torch.float64) - 1)
    for image, after, (brightness, contrast, saturation) in zip(batch, found, draws, strict=True):
        bright = image * brightness
        contrasted = bright.mean() + contrast * (bright - bright.mean())
        grey = contrasted.mean(0)
        torch.testing.assert_close(after, grey + saturation * (contrasted - grey))


def test_jitter_of_one_channel_keeps_it_and_works_on_images_apart():
    batch = images(6, 1, 4, 4)
    found = color_jitter(batch, 0.4, generator())
    assert bool(torch.isfinite(found).all())
    changed = batch.clone()
    changed[0] += 1
    torch.testing.assert_close(color_jitter(changed, 0.4, generator())[1:], found[1:])


@pytest.mark.parametrize("change", ALL)
def test_a_strength_out_of_range_is_refused_in_one_line(change):
    high = () if change is gaussian_noise else (1.5,)
    for strength in (-0.1, math.nan, *high):
        with pytest.raises(ValueError, match="must") as error:
            change(images(), strength, generator())
        assert str(error.value).startswith(f"{change.__name__}(strength={strength:g}): must")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="strength=-1"):
        change(images(2, 5, 3, 6, 4), torch.tensor([0.1, -1.0]), [generator(), generator()])


@pytest.mark.parametrize("change", IMAGES)
def test_rows_that_are_no_images_are_refused(change):
    with pytest.raises(ValueError, match=r"a batch of shape \[5, 3\] holds no images"):
        change(images(5, 3), 0.1, generator())


@pytest.mark.parametrize("change", [gaussian_noise, random_projection, color_jitter])
def test_integers_are_refused_to_which_the_change_would_be_rounded(change):
    with pytest.raises(ValueError, match=f"{change.__name__}: a batch of uint8 would be rounded"):
        change(images().to(torch.uint8), 0.5, generator())


def test_so_they_are_by_a_projection_of_fixed_rank():
    with pytest.raises(ValueError, match="rank_projection: a batch of int64 would be rounded"):
        rank_projection(torch.eye(3).long(), 2, generator())


@pytest.mark.parametrize("change", [random_crop, random_flip])
def test_images_of_integers_are_moved_as_those_of_numbers(change):
    whole = images().mul(9).long()
    moved = change(whole, 0.6, generator())
    assert moved.dtype == torch.int64
    assert torch.equal(moved, change(whole.double(), 0.6, generator()).long())


@pytest.mark.parametrize("rank", [6, -1, 1.5, math.nan])
def test_a_rank_above_n_is_refused(rank):
    with pytest.raises(ValueError, match="must be an integer from 0 to n = 5") as error:
        rank_projection(torch.eye(5), rank, generator())
    assert f"rank_projection(strength={rank:g})" in str(error.value)


@pytest.mark.parametrize("change", ALL)
def test_every_client_needs_a_generator(change):
    with pytest.raises(ValueError, match="1 generators for 2 clients"):
        change(images(2, 5, 3, 6, 4), 0.1, [generator()])
