"""How much of a machine a device may use."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Settings that numerical libraries read once, when they are loaded."""
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def set_threads(number: int) -> None:
    """Let numerical libraries use ``number`` threads.

    NumPy's has read its setting by now. If that was another one, this process starts anew, with
    the same arguments.
    """
    wanted = dict.fromkeys(THREADS, str(number))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        if "numpy" in sys.modules:
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def size_of(text: str) -> int:
    """``300M`` or ``1.5G`` as bytes.

    Raises:
        ValueError: it is no size.

    Example:
        >>> from fedexp.devices.limits import size_of
        >>> size_of("1.5G") == 3 << 29
        True
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise ValueError(f"--max-memory {text}: must be a size such as 300M or 1.5G.")
    return int(float(match[1]) * _UNITS[match[2]])


def set_max_memory(limit: int) -> None:
    """Let this process have at most ``limit`` bytes of memory of its own.

    A client that wants more gets an error, which becomes its reply; the device goes on.

    Raises:
        ValueError: the process has more already.
    """
    used = _own_memory()
    if limit <= used:
        raise ValueError(
            f"--max-memory {limit >> 20}M: the device has {used >> 20}M before it trains. Allow "
            f"{(used >> 20) * 3 // 2}M at least."
        )
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _own_memory() -> int:
    """Bytes that the kernel counts against the limit."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(re.findall(r"VmData:\s+(\d+) kB", status)[0]) << 10
