"""Tensors side by side in memory are one vector; others are copied, and no result differs."""

import copy
import io

import numpy as np
import pytest
import torch

from fedexp.hypergradients import joined
from fedexp.hypergradients.adaptive_rules import Adam
from fedexp.hypergradients.batches import ParamBatch
from fedexp.hypergradients.inner_products import quotient_dots
from fedexp.hypergradients.optimizer import Hypergradient
from fedexp.hypergradients.rules import SGD

BETAS = Adam(0.01, tuned=("lr", "beta1", "beta2"), hyper=SGD(1e-3))
SHAPES = ((3, 4), (4,), (), (2, 3))


def trained(dtype=torch.float64, foreach=True, seeds=range(5)):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    optimizer = Hypergradient(params, BETAS, foreach=foreach)
    for seed in seeds:
        generator.manual_seed(seed)
        for p in params:
            p.grad = p.detach() + torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return optimizer


def one_vector(optimizer, name):
    """Whether the moments of all parameters lie side by side."""
    tensors = [state["slots"][name] for state in optimizer.state.values()]
    return joined.joined(tensors).data_ptr() == tensors[0].data_ptr()


def test_a_view_needs_tensors_side_by_side_in_one_storage():
    memory = np.arange(4.0)
    neighbours = [torch.from_numpy(memory[:2]), torch.from_numpy(memory[2:])]
    x = torch.arange(6.0)
    cases = {
        "neighbours of two storages": (neighbours, False),
        "a gap": ([x[:2], x[3:]], False),
        "another order": ([x[3:], x[:3]], False),
        "turned": ([x[:4].view(2, 2).t(), x[4:]], False),
        "side by side": ([x[1:5].view(2, 2), x[5:]], True),
    }
    for case, (tensors, is_view) in cases.items():
        vector = joined.joined(tensors)
        assert vector.tolist() == [y for t in tensors for y in t.flatten().tolist()], case
        assert (vector.data_ptr() == tensors[0].data_ptr()) == is_view, case


def test_copies_are_copies():
    for tensors in ([torch.ones(2)], [torch.ones(2), torch.ones(2, 2).t()]):
        for x, y in zip(tensors, joined.joined_copies(tensors), strict=True):
            assert torch.equal(x, y)
            assert x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


def test_types_are_not_mixed():
    tensors = [torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.float64), torch.ones(2)]
    assert joined.runs(tensors) == [slice(0, 2), slice(2, 3), slice(3, 4)]


@pytest.mark.parametrize("block", [1, 5, 12, 13])
def test_the_length_of_a_block_changes_no_result(block, monkeypatch):
    expected = trained(foreach=False)
    monkeypatch.setattr(joined, "BLOCK", block)
    optimizer = trained()
    assert optimizer.learned().values() == pytest.approx(expected.learned().values(), rel=1e-9)


def test_inner_products_of_half_precision_are_summed_in_single():
    new, grad, m, v = (torch.full((1000,), x, dtype=torch.float16) for x in (300, 1, 300, 1))
    state = {"slots": {"m": m, "v": v}, "kept": {"grad": grad}, "root": {"eps": 0.0, "kappa": 2.0}}
    dots = quotient_dots(ParamBatch({}, [new], [new], [state]))
    # The largest float16 is 65504.
    assert {name: sum(x).item() for name, x in dots.items()} == {
        "m": 9e7,
        "grad": 3e5,
        "curve": 4.5e7,
    }


def test_copied_and_saved_states_stay_one_vector():
    optimizer, file = trained(), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = trained(seeds=[])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for one in (optimizer, loaded, copy.deepcopy(optimizer)):
        assert one_vector(one, "m")
        assert one_vector(one, "v")


def test_tuned_betas_keep_the_gradient_alone():
    assert {tuple(state["kept"]) for state in trained().state.values()} == {("grad",)}
