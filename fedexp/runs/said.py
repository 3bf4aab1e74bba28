"""What runs from Python check, call things and say at the end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fedexp.config import Config, cut
from fedexp.runs.federation import Federation
from fedexp.runs.reading import MetricsRow


def check_folder(owner: str, config: Config, resume: object) -> None:
    """Raise ``ValueError`` for what needs a folder where ``out`` names none.

    Args:
        owner: who takes them, for the messages.
        config: of the run.
        resume: whether to go on with what is in the folder.
    """
    if not isinstance(resume, bool):
        raise ValueError(
            f"{owner}(resume={cut(resume)}): must be True or False. Name the folder with out."
        )
    if config.out:
        return
    given = {"resume": resume} | {key: getattr(config, key) for key in _OF_A_FOLDER}
    if needs := [f"{key}={cut(value)}" for key, value in given.items() if value]:
        raise ValueError(f"{owner}({needs[0]}): nothing is written without a folder. Give out.")


_OF_A_FOLDER = ("log", "checkpoint_every", "name")


def check_calls(**calls: Any) -> None:
    """Raise ``ValueError`` for one that is no function."""
    for name, call in calls.items():
        if not callable(call):
            raise ValueError(f"run({name}={cut(call)}): must be a function.")


def tell(problem: str | None, rows: Sequence[MetricsRow]) -> None:
    """Say what went wrong in ``rows``, of which there are some.

    Raises:
        RuntimeError: all of them failed.
    """
    if problem and all(row["failed"] for row in rows):
        raise RuntimeError(problem)
    if problem:
        warnings.warn(problem, RuntimeWarning, stacklevel=_depth())


def _depth() -> int:
    """How many calls up from the function that asks is code outside of this folder."""
    frame, depth = sys._getframe(1), 1
    here = str(Path(__file__).parent)
    while frame.f_back and frame.f_code.co_filename.startswith(here):
        frame, depth = frame.f_back, depth + 1
    return depth


def maker_of(federation: Federation) -> Callable[[], nn.Module] | None:
    """What makes the model of a run; None where clients of one's own keep it to themselves."""
    return federation.model if federation.knows_model else None


def name_of(strategy: Any) -> str:
    """What a strategy is called that came as an object."""
    return str(getattr(strategy, "__name__", type(strategy).__name__))
