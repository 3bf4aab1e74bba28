"""The binary tree along which the clients of a round are added up.

The clients are its leaves; it halves the cohort again and again. Sums follow this tree and nothing
else, so a worker that runs any subtree returns the one value that every other division of labour
gives: the result is the same to the last bit however the work is spread.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedexp.merged import Merged

Span = tuple[int, int]
"""Positions ``lo`` to ``hi - 1`` of a cohort."""


def subtrees(span: Span, within: Span) -> list[Span]:
    """The fewest subtrees of the tree over ``within`` that make up ``span``, in order."""
    lo, hi = max(span[0], within[0]), min(span[1], within[1])
    if lo >= hi:
        return []
    if (lo, hi) == within:
        return [within]
    return [found for half in halves(within) for found in subtrees(span, half)]


def halves(span: Span) -> tuple[Span, Span]:
    """The two children of a subtree of at least two leaves."""
    middle = span[0] + (span[1] - span[0]) // 2
    return (span[0], middle), (middle, span[1])


def subtrees_up_to(size: int, span: Span) -> list[Span]:
    """The largest subtrees of at most ``size`` leaves, in order."""
    if span[1] - span[0] <= size:
        return [span]
    return [found for half in halves(span) for found in subtrees_up_to(size, half)]


def combine(span: Span, parts: Mapping[Span, Merged]) -> Merged:
    """The sum over ``span`` from the sums of subtrees that make it up."""
    if span in parts:
        return parts[span]
    left, right = halves(span)
    return combine(left, parts) + combine(right, parts)
