"""Which clients have contributed to a run, whose replies were dropped, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING

import numpy as np
from flwr.common.logger import log

from fedexp.arrays import Arrays
from fedexp.merged import Failure

Reasons = dict[str, list[int]]
"""Nodes by the reason why their replies were dropped."""

BAD_REPLIES = {
    "undone": r"the round is undone|^the server step",
    "lost": r"^no reply came",
    "late": r"^no reply within",
    "not-finite": r"NaN or infinity|not finite|^FloatingPointError:|has norm|finite number",
    "outlier": r"x the median",
    "crash": r"^[\w.]+: .*\(.*, line \d+\)$|its worker process ended",
    "malformed": r"array|record|metric|differs|must be a positive number|returned|no RecordDict",
}
"""Kinds of bad replies, and what their reasons have in common; the first that fits counts."""

_MOST_NODES = 5  # so many are named in one line of the log


class Attendance:
    """Who contributed in the rounds of a run so far.

    Attributes:
        contributed: nodes with a reply that has entered a server step.
        missing: nodes that were asked to train and have never contributed.
        reasons: why replies of the last round were dropped.

    Example:
        >>> from fedexp.strategies.attendance import Attendance
        >>> attendance = Attendance()
        >>> attendance.ask([1, 2])
        >>> attendance.came([1])
        >>> attendance.contributed, attendance.missing
        ({1}, {2})
    """

    def __init__(self) -> None:
        self.contributed: set[int] = set()
        self.missing: set[int] = set()
        self.reasons: Reasons = {}
        self._told: set[str] = set()

    def ask(self, nodes: Iterable[int]) -> None:
        """Note that a round begins in which ``nodes`` are asked to train."""
        self.missing.update(set(nodes) - self.contributed)
        self.reasons = {}

    def came(self, nodes: Iterable[int]) -> None:
        """Note that replies of ``nodes`` have entered the server step."""
        self.contributed.update(nodes)
        self.missing -= self.contributed

    def fail(self, failures: Sequence[Failure]) -> None:
        """Note why replies of this round are dropped, and log it."""
        self.reasons = merged([self.reasons, by_reason(failures)])
        self.tell(failures)

    def tell(self, failures: Sequence[Failure]) -> None:
        """Log failures, one line per reason; a reason that was logged before is at level INFO."""
        for reason, nodes in by_reason(failures).items():
            log(INFO if _pattern(reason) in self._told else WARNING, "%s", line(reason, nodes))
            self._told.add(_pattern(reason))

    def state(self) -> Arrays:
        """The attendance as arrays, for a checkpoint."""
        sets = {"contributed": self.contributed, "missing": self.missing}
        return {name: np.array(sorted(nodes), np.uint64) for name, nodes in sets.items()}

    def restore(self, state: Arrays) -> None:
        """Read what ``state`` returned."""
        self.contributed, self.missing = (
            set(state[name].tolist()) for name in ("contributed", "missing")
        )


def by_reason(failures: Iterable[Failure]) -> Reasons:
    """Nodes by reason, in ascending order.

    Reasons that differ only in their numbers count as one, under the words of the first.

    Example:
        >>> from fedexp.strategies.attendance import by_reason
        >>> by_reason([(7, "norm 3.5 is too long"), (2, "norm 4 is too long")])
        {'norm 3.5 is too long': [2, 7]}
    """
    first: dict[str, str] = {}
    nodes: dict[str, set[int]] = {}
    for node, reason in failures:
        nodes.setdefault(first.setdefault(_pattern(reason), reason), set()).add(node)
    return {reason: sorted(found) for reason, found in nodes.items()}


def kind_of_failure(reason: str) -> str:
    """What kind of bad reply a reason tells of; ``other`` if it is none of ``BAD_REPLIES``.

    Example:
        >>> from fedexp.strategies.attendance import kind_of_failure
        >>> kind_of_failure("array 'w' holds NaN or infinity.")
        'not-finite'
    """
    found = (kind for kind, pattern in BAD_REPLIES.items() if re.search(pattern, reason))
    return next(found, "other")


def by_kind(reasons: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """How many replies were dropped, by ``kind_of_failure`` their reason."""
    counts = Counter(kind_of_failure(reason) for reason, nodes in reasons.items() for _ in nodes)
    return {kind: counts[kind] for kind in (*BAD_REPLIES, "other") if kind in counts}


def merged(rounds: Iterable[Mapping[str, Iterable[int]]]) -> Reasons:
    """The reasons of several rounds, the reason of most nodes first."""
    failures = [(n, reason) for reasons in rounds for reason, ns in reasons.items() for n in ns]
    return dict(sorted(by_reason(failures).items(), key=lambda item: -len(item[1])))


def line(reason: str, nodes: list[int]) -> str:
    """The line of the log for the nodes whose replies are dropped for one reason."""
    if len(nodes) == 1:
        return f"Reply of node {nodes[0]} dropped: {reason}"
    shown = [*map(str, nodes[:_MOST_NODES]), *["..."][: len(nodes) > _MOST_NODES]]
    return f"Replies of {len(nodes)} clients dropped (nodes {', '.join(shown)}): {reason}"


def _pattern(reason: str) -> str:
    # Numbers inside a name, such as layer1, are part of the reason.
    return re.sub(r"(?<![A-Za-z_])[-+]?\d+(\.\d+)?([eE][-+]?\d+)?|\b(nan|inf)\b", "#", reason)
