"""Pseudo-gradient statistics: what the server keeps of a round, as sums that add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedexp.arrays import Arrays, Float64s, Quotient
from fedexp.sums import add_updates, tree_sum


@dataclass(frozen=True, eq=False)
class PseudoGradientStats:
    """Weighted sums over the clients of one round; a commutative monoid under ``+``.

    The pseudo-gradient of client ``i`` is ``Δᵢ = w - wᵢ``, where ``w`` is what the server
    broadcast and ``wᵢ`` what the client returned, trainable arrays only. With ``Z`` the zero
    ``PseudoGradientStats()``: ``a + b == b + a``, ``(a + b) + c == a + (b + c)`` up to float64
    rounding, and ``a + Z == a``. Adding never changes its operands.

    Attributes:
        count: ``M``, number of clients. Dimensionless.
        weight: ``Σ pᵢ``, in examples when clients are weighted by data.
        update: ``Σ pᵢ Δᵢ`` by name, float64, each of its parameter's shape.
        sq_norm: ``Σ pᵢ ‖Δᵢ‖²``, in squared parameter units.
        norm: ``Σ pᵢ ‖Δᵢ‖``, in parameter units.
        buffers: ``Σ pᵢ bᵢ`` by name, float64: values, not differences, of whatever is not
            trainable (batch-norm statistics, counters).
        num_clipped: clients whose update was scaled down.
        loss: ``Σ pᵢ fᵢ(wᵢ)``, the clients' losses at what they returned; None where unknown.
        noise: what noise that hides the clients adds to ``‖Σ pᵢ Δᵢ‖²`` in expectation.
    """

    count: int = 0
    weight: float = 0.0
    update: Float64s = field(default_factory=dict)
    sq_norm: float = 0.0
    norm: float = 0.0
    buffers: Float64s = field(default_factory=dict)
    num_clipped: int = 0
    loss: float | None = None
    noise: float = 0.0

    @classmethod
    def of(
        cls, before: Arrays, after: Arrays, *, weight: float, trainable: frozenset[str]
    ) -> PseudoGradientStats:
        """Statistics of one client that got ``before`` and returned ``after``."""
        return cls.aggregate(before, [after], weights=[weight], trainable=trainable)

    @classmethod
    def aggregate(
        cls,
        before: Arrays,
        afters: Sequence[Arrays],
        *,
        weights: Sequence[float],
        trainable: frozenset[str],
        scales: Sequence[float] | None = None,
        onto: PseudoGradientStats | None = None,
    ) -> PseudoGradientStats:
        """Statistics of several clients in one pass over memory.

        Bit for bit ``onto + tree_sum`` of the single clients' statistics.

        Args:
            before: ``w``, what every one of them got.
            afters: ``wᵢ``, what each returned; names and shapes of ``before``.
            weights: ``pᵢ > 0``, or 0 for a client that is dropped but keeps its place.
            trainable: names that count as update; the rest are buffers.
            scales: ``sᵢ ≤ 1``; ``sᵢ Δᵢ`` counts in place of ``Δᵢ``. All 1 by default.
            onto: a running total to add to. Its arrays are reused for the result: a server that
                adds reply after reply holds one float64 model, however many there are.
        """
        onto = onto or cls()
        scales = [1.0] * len(afters) if scales is None else scales
        # Clipping scales the update alone: pᵢ sᵢ in its sum, while Σ pᵢ divides by whole weights.
        factors = [p * s for p, s in zip(weights, scales, strict=True)]
        sq_norms = np.zeros(len(afters))
        update, buffers = {}, {}
        for name, w in before.items():
            columns = [after[name] for after in afters]
            if name in trainable:
                out = onto.update.get(name)
                update[name] = add_updates(w, columns, factors, sq_norms, out)
            else:
                terms = [p * x.astype(np.float64) for p, x in zip(weights, columns, strict=True)]
                buffers[name] = np.asarray(tree_sum(terms))
        added = cls(
            count=sum(weight > 0 for weight in weights),
            weight=float(tree_sum(weights)),
            # Σ pᵢ ‖sᵢ Δᵢ‖² = Σ (pᵢ sᵢ) (sᵢ ‖Δᵢ‖²), and likewise Σ pᵢ ‖sᵢ Δᵢ‖ = Σ (pᵢ sᵢ) ‖Δᵢ‖.
            sq_norm=_dot(factors, [s * q for s, q in zip(scales, sq_norms, strict=True)]),
            norm=_dot(factors, [q**0.5 for q in sq_norms]),
            buffers=buffers,
            num_clipped=sum(p > 0 and s < 1 for p, s in zip(weights, scales, strict=True)),
        )
        return replace(replace(onto, update={}) + added, update=update)

    def __add__(self, other: PseudoGradientStats) -> PseudoGradientStats:
        return PseudoGradientStats(
            count=self.count + other.count,
            weight=self.weight + other.weight,
            update=_sum(self.update, other.update),
            sq_norm=self.sq_norm + other.sq_norm,
            norm=self.norm + other.norm,
            buffers=_sum(self.buffers, other.buffers),
            num_clipped=self.num_clipped + other.num_clipped,
            loss=other.loss if self.loss is None else self.loss + (other.loss or 0.0),
            noise=self.noise + other.noise,
        )

    merge = add = __add__

    @property
    def mean_update(self) -> Float64s:
        """``Δ̄ = Σ pᵢ Δᵢ / Σ pᵢ``, the pseudo-gradient of the round."""
        return Quotient(self.update, self.weight)

    @property
    def excess(self) -> float:
        """By how much noise makes ``‖Δ̄‖²`` too long, in expectation; 0 without noise."""
        return self.noise / self.weight**2

    @property
    def mean_buffers(self) -> Float64s:
        """``Σ pᵢ bᵢ / Σ pᵢ``."""
        return Quotient(self.buffers, self.weight)

    @property
    def mean_sq_norm(self) -> float:
        """``Σ pᵢ ‖Δᵢ‖² / Σ pᵢ``."""
        return self.sq_norm / self.weight

    @property
    def mean_norm(self) -> float:
        """``Σ pᵢ ‖Δᵢ‖ / Σ pᵢ``."""
        return self.norm / self.weight


def total(parts: Iterable[PseudoGradientStats]) -> PseudoGradientStats:
    """Sum of ``parts`` in their order, holding the running sum and one part at a time."""
    result = PseudoGradientStats()
    for part in parts:
        result = result + part
    return result


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return float(tree_sum([x * y for x, y in zip(a, b, strict=True)]))


def _sum(a: Float64s, b: Float64s) -> Float64s:
    if not a or not b:
        return a or b
    return {name: np.asarray(a[name] + b[name]) for name in a}
