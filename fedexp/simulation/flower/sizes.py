"""What the arrays of a message would become, read off its encoded objects before they do.

An array names its pieces by number, and may name one piece many times: 5 MB on the wire can become
500 GB in memory. It also declares a shape, which need not fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)


def check_size(contents: Mapping[str, bytes], most: int) -> None:
    """Compare what arrays declare, and what they inflate to, with what may come.

    Uses the layout of Flower's encoded objects; nothing is inflated.

    Args:
        contents: the encoded objects of a message, by id.
        most: bytes of all arrays together.

    Raises:
        ValueError: they are more, or an array declares what cannot be.
    """
    total = 0
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind != Array.__qualname__:
            continue
        total += max(_sizes(content, children, contents))
        if total > most:
            raise ValueError(f"its arrays need {total:,} bytes or more, {most:,} are allowed.")


def _sizes(content: bytes, children: list[str], contents: Mapping[str, bytes]) -> tuple[int, int]:
    """Bytes that an encoded array declares, and that it would inflate to."""
    body = json.loads(get_object_body(content, Array))
    lengths = [get_object_head_values_from_object_content(contents[x])[2] for x in children]
    shape = [int(length) for length in body["shape"]]
    if any(length < 0 for length in shape):
        raise ValueError(f"an array declares the shape {shape}.")
    declared = math.prod(shape) * np.dtype(str(body["dtype"])).itemsize
    counts = np.bincount(np.asarray(body["arraychunk_ids"], np.int64), minlength=len(lengths))
    return declared, sum(int(n) * length for n, length in zip(counts, lengths, strict=True))
