"""PyTorch's optimizers without their marks for a profiler that does not run."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import profiler

from fedexp.simulation.flower.switch import is_plain


class _Mark(profiler.record_function):
    """A mark that is made only while somebody records."""

    def __enter__(self) -> Any:
        self.is_on = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        return super().__enter__() if self.is_on else self  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        if self.is_on:
            super().__exit__(*error)


def skip_idle_marks() -> None:
    """Let ``torch.optim`` mark its steps only while a profiler runs.

    Replaces ``torch.autograd.profiler.record_function``, and asks ``_profiler_enabled``. The marks
    are a quarter of a step of a small model. Only for processes that run nothing but clients. With
    ``FEDEXP_PLAIN=1``, or in a release of PyTorch that cannot be asked, the marks stay.
    """
    if not is_plain() and hasattr(torch.autograd, "_profiler_enabled"):
        profiler.record_function = _Mark  # type: ignore[misc]
