import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedexp.arrays import cast_like, check_alike, first_non_finite, sq_norm, trainable_names

FLOATS = [np.float16, np.float32, np.float64]


def test_only_floating_arrays_that_are_no_batch_norm_buffer_are_trainable():
    names = trainable_names(
        {
            "layer.weight": np.zeros(2, np.float32),
            "running_mean_head.bias": np.zeros((), np.float16),
            "bn.running_mean": np.zeros(2),
            "running_var": np.ones(2),
            "bn.num_batches_tracked": np.asarray(3),
            "float.num_batches_tracked": np.asarray(3.0),
            "steps": np.zeros(2, np.int32),
            "mask": np.zeros(2, bool),
        }
    )
    assert names == {"layer.weight", "running_mean_head.bias"}


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=0), elements=st.floats(-1e3, 1e3)))
def test_the_squared_norm_is_the_exact_sum_of_squares(x):
    exact = math.fsum(v * v for v in x.ravel().tolist())
    assert sq_norm({"a": x, "b": x.T}) == pytest.approx(2 * exact, rel=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_squared_norm_is_summed_in_float64(dtype):
    # 300² overflows float16; 2¹⁵ terms of 0.1² lose their tail in float16 and float32.
    assert sq_norm({"a": np.asarray(300, dtype)}) == 90000
    x = np.full(1 << 15, 0.1, dtype)
    assert sq_norm({"a": x}) == pytest.approx((1 << 15) * float(dtype(0.1)) ** 2, rel=1e-13)


def test_no_arrays_have_norm_zero():
    assert sq_norm({}) == 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(2)}, "missing .*'b'"),
        ({"a": np.zeros(2), "b": np.zeros(()), "c": np.zeros(1)}, "unexpected .*'c'"),
        ({"a": np.zeros((2, 1)), "b": np.zeros(())}, r"'a' has shape \(2, 1\), expected \(2,\)"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, r"'b' has shape \(1,\), expected \(\)"),
        ({"a": np.zeros(2, complex), "b": np.zeros(())}, "'a' has dtype complex128"),
        ({"a": np.zeros(2, "U1"), "b": np.zeros(())}, "'a' has dtype <U1"),
    ],
)
def test_other_names_shapes_and_kinds_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        check_alike(arrays, {"a": np.zeros(2), "b": np.zeros(())})


def test_a_message_about_many_names_stays_short():
    with pytest.raises(ValueError, match=r"\.\.\.\]") as caught:
        check_alike({}, {f"layer{i}": np.zeros(1) for i in range(1000)})
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(), (1,), (7, 11)])
def test_one_bad_entry_is_found(dtype, bad, shape):
    x = np.ones(shape, dtype)
    x[(-1,) * len(shape)] = bad
    assert first_non_finite({"fine": np.ones(3), "n": np.asarray(1), "bad": x}) == "bad"


def test_infinities_that_cancel_are_found():
    assert first_non_finite({"a": np.array([np.inf, -np.inf])}) == "a"


@pytest.mark.parametrize("dtype", FLOATS)
def test_finite_entries_whose_sum_overflows_are_finite(dtype):
    assert first_non_finite({"a": np.full(9, np.finfo(dtype).max)}) is None


@pytest.mark.parametrize("dtype", [*FLOATS, np.int8, np.uint8, np.int64, bool])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_a_cast_keeps_dtype_and_shape(dtype, shape):
    cast = cast_like(np.ones(shape) * np.float64(1), np.zeros(shape, dtype))
    assert isinstance(cast, np.ndarray)
    assert (cast.dtype, cast.shape) == (dtype, shape)


def test_integers_are_rounded_to_the_nearest():
    value = np.array([0.4, 0.6, -1.6, 7.999999])
    assert cast_like(value, np.zeros(4, np.int32)).tolist() == [0, 1, -2, 8]
