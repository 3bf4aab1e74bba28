"""Clients whose matrices stay in factors, added up."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from fedexp.arrays import update_norm
from fedexp.stats import PseudoGradientStats
from fedexp.sums import Factored, add_updates, tree_sum

RNG = np.random.default_rng(0)
SHAPES = [(3, 4), (1, 1), (50, 1000), (7, 24576), (3, 30000)]  # the last is wider than a block


def factored(w, rank=2):
    """A client's matrix in factors, and the same put together in float64."""
    left = RNG.normal(size=(w.shape[0], rank)).astype(w.dtype)
    right = RNG.normal(size=(rank, w.shape[1])).astype(w.dtype)
    return Factored(w, left, right), w - left.astype(np.float64) @ right


def matrix(shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_reads_as_the_matrix_it_stands_for(dtype):
    w = matrix((3, 4), dtype)
    x, expected = factored(w)
    assert (x.shape, x.dtype) == (w.shape, w.dtype)
    assert np.asarray(x).dtype == dtype
    np.testing.assert_allclose(np.asarray(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.subtract(w, x), w - expected, rtol=1e-4, atol=1e-5)
    assert x.astype(np.float64).dtype == np.float64
    assert np.isfinite(np.sum(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_is_that_of_the_matrices(shape):
    w = matrix(shape)
    clients = [factored(w) for _ in range(3)]
    plain = matrix(shape)
    columns = [x for x, _ in clients] + [plain]
    factors = [2.0, 0.0, 5.0, 1.0]
    norms = np.zeros(4)
    got = add_updates(w, columns, factors, norms, None)
    each = [w - x for x in (*(full for _, full in clients), plain.astype(np.float64))]
    expected = sum(f * x for f, x in zip(factors, each, strict=True))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=2e-6 * scale)
    squares = [(x**2).sum() if f else 0.0 for f, x in zip(factors, each, strict=True)]
    np.testing.assert_allclose(norms, squares, rtol=1e-5)


def test_any_grouping_into_subtrees_gives_the_same_bits():
    w = matrix((40, 900))
    columns = [factored(w)[0] for _ in range(8)]
    weights = RNG.uniform(1, 9, 8)

    def total(some):
        part = slice(*some)
        return PseudoGradientStats.aggregate(
            {"w": w},
            [{"w": x} for x in columns[part]],
            weights=list(weights[part]),
            trainable=frozenset("w"),
        )

    whole = total((0, 8))
    for cuts in ([0, 4, 8], [0, 2, 4, 8], list(range(9))):
        parts = {(a, b): total((a, b)) for a, b in itertools.pairwise(cuts)}
        summed = _combined((0, 8), parts)
        assert summed.update["w"].tobytes() == whole.update["w"].tobytes()
        assert summed.sq_norm == whole.sq_norm


def _combined(span, parts):
    if span in parts:
        return parts[span]
    middle = sum(span) // 2
    return tree_sum([_combined((span[0], middle), parts), _combined((middle, span[1]), parts)])


def test_a_matrix_that_left_from_elsewhere_is_put_together_first():
    w, other = matrix((5, 6)), matrix((5, 6))
    x, full = factored(other)
    norms = np.zeros(1)
    got = add_updates(w, [x], [1.0], norms, None)
    np.testing.assert_allclose(got, w - full, rtol=1e-4, atol=1e-5)
    assert norms[0] == pytest.approx(((w - full) ** 2).sum(), rel=1e-5)


def test_its_norm_can_be_clipped():
    w = matrix((30, 20))
    x, full = factored(w)
    norm = update_norm({"w": w}, {"w": x}, frozenset("w"))
    assert norm == pytest.approx(np.linalg.norm(w - full), rel=1e-5)


def test_nothing_is_put_together_when_it_is_added(monkeypatch):
    w = matrix((30, 20))
    monkeypatch.delattr(Factored, "__array__")
    add_updates(w, [factored(w)[0]], [1.0], np.zeros(1), None)


def test_its_product_is_the_same_for_any_number_of_threads():
    code = (
        "import hashlib, numpy as np\n"
        "from fedexp.sums import Factored, add_updates\n"
        "rng = np.random.default_rng(0)\n"
        "for rows, columns, rank in ((512, 784, 32), (1000, 777, 33), (25, 3072, 21)):\n"
        "    w, l, r = (rng.normal(size=s).astype('f4')\n"
        "        for s in ((rows, columns), (rows, rank), (rank, columns)))\n"
        "    sums = add_updates(w, [Factored(w, l, r)], [1.0], np.zeros(1), None)\n"
        "    print(hashlib.sha256(sums.tobytes()).hexdigest())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
