"""Which clients have contributed to a run, which were left out, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING

import numpy as np
from flwr.common.logger import log

from fedexp.arrays import Arrays
from fedexp.merged import Failure

Reasons = dict[str, list[int]]
"""Nodes by the reason why their replies were left out."""

_MOST_NODES = 5  # that a line names


class Attendance:
    """Who contributed in the rounds of a run so far.

    Attributes:
        contributed: nodes with a reply that has entered a server step.
        missing: nodes that were asked to train and have never contributed.
        reasons: of the last round's failures.
    """

    def __init__(self) -> None:
        self.contributed: set[int] = set()
        self.missing: set[int] = set()
        self.reasons: Reasons = {}
        self._told: set[str] = set()

    def ask(self, nodes: Iterable[int]) -> None:
        """A round begins in which ``nodes`` are asked to train."""
        self.missing.update(set(nodes) - self.contributed)
        self.reasons = {}

    def came(self, nodes: Iterable[int]) -> None:
        """Replies of ``nodes`` have entered the server step."""
        self.contributed.update(nodes)
        self.missing -= self.contributed

    def fail(self, failures: Sequence[Failure]) -> None:
        """Note why replies of this round are left out, and log it."""
        self.reasons = merged([self.reasons, grouped(failures)])
        self.tell(failures)

    def tell(self, failures: Sequence[Failure]) -> None:
        """Log failures, one line per reason; a reason that was told before at level INFO."""
        for reason, nodes in grouped(failures).items():
            log(INFO if _pattern(reason) in self._told else WARNING, "%s", line(reason, nodes))
            self._told.add(_pattern(reason))

    def state(self) -> Arrays:
        """For a checkpoint."""
        sets = {"contributed": self.contributed, "missing": self.missing}
        return {name: np.array(sorted(nodes), np.uint64) for name, nodes in sets.items()}

    def restore(self, state: Arrays) -> None:
        """The inverse of ``state``."""
        self.contributed, self.missing = (
            set(state[name].tolist()) for name in ("contributed", "missing")
        )


def grouped(failures: Iterable[Failure]) -> Reasons:
    """Nodes by reason; reasons that differ in their numbers alone are one, the first's."""
    first: dict[str, str] = {}
    nodes: dict[str, set[int]] = {}
    for node, reason in failures:
        nodes.setdefault(first.setdefault(_pattern(reason), reason), set()).add(node)
    return {reason: sorted(found) for reason, found in nodes.items()}


def merged(rounds: Iterable[Mapping[str, Iterable[int]]]) -> Reasons:
    """The reasons of several rounds, those of most nodes first."""
    failures = [(n, reason) for reasons in rounds for reason, ns in reasons.items() for n in ns]
    return dict(sorted(grouped(failures).items(), key=lambda item: -len(item[1])))


def line(reason: str, nodes: list[int]) -> str:
    """One line of the log."""
    if len(nodes) == 1:
        return f"Reply of node {nodes[0]} left out: {reason}"
    shown = [*map(str, nodes[:_MOST_NODES]), *["..."][: len(nodes) > _MOST_NODES]]
    return f"Replies of {len(nodes)} clients left out (nodes {', '.join(shown)}): {reason}"


def _pattern(reason: str) -> str:
    return re.sub(r"(?<![A-Za-z_])[-+]?\d+(\.\d+)?([eE][-+]?\d+)?|\b(nan|inf)\b", "#", reason)
