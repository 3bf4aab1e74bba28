"""Layers that stay at the clients: they are neither sent nor added up, as in FedPer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fedexp import keys
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Extension, RoundInProgress, Sent, run_number


@dataclass(frozen=True)
class PrivateLayers(Extension):
    """Every client has its own values of some arrays, and trains them with the model it is sent.

    Arivazhagan et al. 2019, arXiv:1912.00818, where these are the last layers; with the arrays of
    batch norm it is FedBN of Li et al. 2021, arXiv:2102.07623. A client begins with the values of
    its own model function, and keeps them in ``Context.state``. The server has its first values of
    them throughout: its own test of the model says nothing, those of the clients do.

    Attributes:
        patterns: names of arrays, with ``*`` and ``?``, by comma.

    Raises:
        ValueError: ``patterns`` is no text.

    Example:
        >>> from fedexp.strategies.private_layers import PrivateLayers
        >>> layers = PrivateLayers("head.*, norm?.bias")
        >>> layers.among(["body.weight", "head.weight", "norm1.bias", "norm1.weight"])
        frozenset({...'head.weight'...})
        >>> len(_)
        2
    """

    keeps_mean = True
    needs_updates = False

    patterns: str

    def __post_init__(self) -> None:
        if not isinstance(self.patterns, str):
            raise ValueError(
                f"FedOpt(private_layers={self.patterns!r}): must be text. Use 'head.*, norm?.bias'."
            )

    def among(self, names: Iterable[str]) -> frozenset[str]:
        """Those of ``names`` that stay at the clients."""
        patterns = [x.strip() for x in self.patterns.split(",")]
        return frozenset(x for x in names if any(fnmatchcase(x, each) for each in patterns))

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ``ValueError`` unless some arrays stay at the clients, and others do not."""
        known = list(names)
        private = self.among(known)
        if not private or len(private) == len(known):
            which = "all" if private else "none"
            raise ValueError(
                f"FedOpt(private_layers={self.patterns!r}): names {which} of the model's arrays. "
                f"It has {', '.join(known[:5])}{' and more' if known[5:] else ''}."
            )

    def told(self) -> dict[str, str]:
        """The setting for the clients."""
        return {keys.PRIVATE_LAYERS: self.patterns}

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """What stays at the clients, and the run that it belongs to."""
        return run_number(state) | Sent(self.told())


@dataclass(frozen=True, eq=False)
class Withheld:
    """A model of the server in two: what is sent, and what stays as it is.

    Attributes:
        order: all names.
        arrays: what stays.
    """

    order: tuple[str, ...]
    arrays: Mapping[str, Any]

    def whole(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """The model with ``sent`` in its place."""
        both = {**sent, **self.arrays}
        return {name: both[name] for name in self.order if name in both}
