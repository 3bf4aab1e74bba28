"""Inputs of a user's own data: which arrays are images, which are tokens, which are numbers.

- uint8 of shape ``[n, height, width]``, ``[n, channels, height, width]`` or ``[n, height, width,
  channels]`` are images. They are scaled to [0, 1], with the channels first.
- Other integers stay integers: uint8 as it is, the others as int64. A model with an embedding takes
  them as tokens; for any other model int64 becomes float32, see `Dataset.as_numbers`.
- Floats and truth values become float32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fedexp.datasets.dealing import Array

IMPUTATIONS = ("mean", "median", "zero")
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def array_of(name: str, values: Any) -> Array:
    """Convert ``values``, the argument ``name`` of `from_arrays`, to an array of at least one row.

    Raises:
        ValueError: rows of several shapes, no rows, or no array at all.
    """
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().to_dense()
            values = values.float() if values.dtype == torch.bfloat16 else values
        elif np.ma.isMaskedArray(values):
            values = np.ma.filled(values.astype(np.float64), np.nan)
        array: Array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        raise ValueError(
            f"from_arrays({name}): no array: {line}. Give all rows one shape."
        ) from None
    if array.ndim == 0:
        raise ValueError(f"from_arrays({name}={array.dtype}): must be an array with a row each.")
    if len(array) == 0:
        raise ValueError(f"from_arrays({name}={array.shape}): has no rows. Give it at least one.")
    return array


def inputs_of(
    x_train: Any,
    x_test: Any,
    *,
    impute: str = "",
    standardize: bool | Sequence[bool] = False,
    columns: Sequence[str] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert training and test inputs to tensors of one kind; the module has the rules.

    Args:
        x_train: ``[num_examples, ...]``, or ``[num_examples]`` if there is one feature.
        x_test: as ``x_train``.
        impute: what replaces a missing value (NaN): the column's ``mean`` or ``median`` over the
            training rows, or ``zero``; empty keeps NaN.
        standardize: whether, or which features, get mean 0 and standard deviation 1 over the
            training rows; of images, each channel. A constant feature becomes 0.
        columns: names of the features, for messages.

    Raises:
        ValueError: text, images on one side only, a column without any value to impute.
    """
    if impute and impute not in IMPUTATIONS:
        known = ", ".join(IMPUTATIONS)
        raise ValueError(f"from_arrays(impute={impute!r}): must be one of {known}.")
    train, test = _numbers("x_train", x_train, columns), _numbers("x_test", x_test, columns)
    if (train.dtype == np.uint8) != (test.dtype == np.uint8):
        raise ValueError(
            f"from_arrays(x_test={test.dtype}): x_train is {train.dtype}, and uint8 images are "
            "scaled. Save both alike."
        )
    if train.dtype == np.uint8 and train.ndim > 2:
        images = _images(train), _images(test)
        return _standardized(*images) if np.any(standardize) else images
    if not np.any(standardize) and all(
        x.dtype.kind in "iu" and np.can_cast(x.dtype, np.int64) for x in (train, test)
    ):
        dtype = np.uint8 if train.dtype == np.uint8 else np.int64
        return _tensor(train, dtype), _tensor(test, dtype)
    if impute:
        train, test = _filled(train, test, impute, columns)
    if np.any(standardize):
        x, x_test = (torch.from_numpy(x.astype(np.float64)) for x in (train, test))
        check_finite("from_arrays(x_train)", x, columns)
        check_finite("from_arrays(x_test)", x_test, columns)
        return _standardized(x, x_test, np.asarray(standardize))
    return _tensor(train, np.float32), _tensor(test, np.float32)


def _standardized(
    train: torch.Tensor, test: torch.Tensor, which: Array | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardise both by the mean and the standard deviation of ``train``, as float32."""
    axes = (0, 2, 3) if train.ndim == 4 else (0,)
    std, mean = torch.std_mean(train, axes, correction=0, keepdim=True)
    # Not std > 0: rounding can give a constant column a tiny standard deviation.
    varies = train.amax(axes, keepdim=True) > train.amin(axes, keepdim=True)
    chosen = torch.ones(()).bool() if which is None else torch.from_numpy(which)
    mean, scale = mean.where(chosen, 0), std.where(chosen & varies, 1)
    return tuple(((x - mean) / scale).float() for x in (train, test))  # type: ignore[return-value]


def check_finite(owner: str, x: torch.Tensor, columns: Sequence[str] = ()) -> None:
    """Raise ``ValueError`` that names the first column with NaN or infinity, if there is one."""
    # If a term is not finite, nor is the sum, which is faster. A sum may also overflow.
    if not x.is_floating_point() or bool(x.sum().isfinite()) or bool(x.isfinite().all()):
        return
    bad = ~x.flatten(1).isfinite()
    found = bad.any(0).nonzero().flatten().tolist()
    rows = int(bad[:, found[0]].sum())
    what = "NaN" if bool(x.flatten(1)[:, found[0]].isnan().any()) else "infinity"
    more = f", as do {len(found) - 1} more columns" if len(found) > 1 else ""
    remedy = "Use impute='median' (--impute median)" if what == "NaN" else "Scale the column"
    raise ValueError(
        f"{owner}: {_column(found[0], x.shape[1:], columns)} holds {what} in {rows} of {len(x)} "
        f"rows{more}. {remedy}, or leave it out."
    )


def check_exact(owner: str, x: torch.Tensor, columns: Sequence[str] = ()) -> None:
    """Raise ``ValueError`` if float32 cannot hold the integers ``x``."""
    # float32 has 24 bits for the digits, so it holds every integer up to 2^24.
    large = x.flatten(1).abs().amax(0) > 1 << 24
    if bool(large.any()):
        j = int(large.nonzero()[0])
        raise ValueError(
            f"{owner}: {_column(j, x.shape[1:], columns)} holds integers beyond 16,777,216, which "
            "float32 would round. Save it as scaled floats, or leave it out if it is an id."
        )


def _numbers(name: str, values: Any, columns: Sequence[str]) -> Array:
    x = array_of(name, values)
    x = x[:, None] if x.ndim == 1 else x
    if x[0].size == 0:
        raise ValueError(f"from_arrays({name}={x.shape}): has no columns. Give it at least one.")
    if x.dtype.kind in "fiub":
        return x
    found = ""
    if x.dtype.kind in "OUS":
        try:
            return x.astype(np.float64)
        except (TypeError, ValueError):
            found = _first_text(x, columns)
    raise ValueError(
        f"from_arrays({name}={x.dtype}): {found}must be numbers. "
        "Encode it as numbers, or leave it out."
    )


def _first_text(x: Array, columns: Sequence[str]) -> str:
    flat = x.reshape(len(x), -1)
    for j in range(flat.shape[1]):
        for value in flat[:, j]:
            try:
                np.float64(value)
            except (TypeError, ValueError):
                return f"{_column(j, x.shape[1:], columns)} holds {str(value)[:40]!r}, it "
    return ""


def _column(j: int, shape: Sequence[int], columns: Sequence[str]) -> str:
    if len(columns) > j:
        return f"column {columns[j]!r}"
    if len(shape) < 2:
        return f"column {j}"
    return f"entry {[int(i) for i in np.unravel_index(j, tuple(shape))]}"


def _images(x: Array) -> torch.Tensor:
    # Channels last, as image libraries have them, unless they could as well be first.
    if x.ndim == 4 and x.shape[-1] in _CHANNELS and x.shape[1] not in _CHANNELS:
        x = np.moveaxis(x, -1, 1)
    images = _tensor(x, np.float32).div_(255)
    return images.unsqueeze(1) if x.ndim == 3 else images


def _tensor(x: Array, dtype: Any) -> torch.Tensor:
    with np.errstate(over="ignore"):  # too large values become infinite; `check_finite` finds them
        return torch.from_numpy(np.require(x, dtype, ["C", "W"]))


def _filled(train: Array, test: Array, how: str, columns: Sequence[str]) -> tuple[Array, Array]:
    """Replace missing values in both by values from the training rows."""
    train, test = (x.astype(np.float64) for x in (train, test))
    shape, seen = train.shape[1:], ~np.isnan(train.reshape(len(train), -1))
    if how != "zero" and not seen.any(0).all():
        j = int(np.flatnonzero(~seen.any(0))[0])
        raise ValueError(
            f"from_arrays(impute={how!r}): {_column(j, shape, columns)} has no value in the "
            "training rows. Leave it out, or use zero."
        )
    fill = np.zeros(shape)
    if how != "zero":
        fill = (np.nanmean if how == "mean" else np.nanmedian)(train, axis=0)
    return tuple(np.where(np.isnan(x), fill, x) for x in (train, test))  # type: ignore[return-value]
