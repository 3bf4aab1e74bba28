"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fedexp.arrays import Arrays


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    """Write ``text``."""
    atomically(path, lambda beside: beside.write_text(text))


def save_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    save_text(path, json.dumps(value, indent=2) + "\n")


def save_model(path: Path, arrays: Arrays) -> None:
    """Write ``arrays`` in the safetensors format."""
    contiguous = {name: np.array(x, order="C") for name, x in arrays.items()}
    atomically(path, lambda beside: save_file(contiguous, beside))
