"""Update rules that scale every coordinate by its past gradients: Adam, RMSprop, Adagrad.

With no ``hyper`` they step as their namesakes in `torch.optim`. The published towers start Adam's
second moment at ``ε`` rather than at 0, which is ``AdamRule(first_v=1e-8)``, and Adagrad's sum of
squares at 0.1.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedexp.hypergradients.rules import Rule, Slots, Values, decayed, zero
from fedexp.hypergradients.scales import BETWEEN_0_AND_1, Number, Scale, no_zero


@dataclass(frozen=True)
class AdamRule(Rule):
    """Adam, and AdamW where the weight decay is decoupled; ``Adam`` for short.

    ``m ← β₁m + (1-β₁)g``, ``v ← β₂v + (1-β₂)g²``,
    ``w ← w - η (m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε)``, with ``t`` the count of steps.
    Kingma & Ba 2015, arXiv:1412.6980; AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101.

    Attributes:
        lr: ``η``, the learning rate.
        beta1: ``β₁``, from 0 to below 1; tuned through tanh.
        beta2: ``β₂``, likewise.
        weight_decay: ``λ``. The gradient is ``g + λw``; decoupled: ``w ← (1 - ηλ)w`` goes first.
        eps: ``ε``, in units of the gradient.
        decoupled: Whether this is AdamW.
        first_v: The initial ``v``, in squared units of the gradient.

    Raises:
        ValueError: A hyperparameter is out of its range, or a name in ``tuned`` cannot be tuned.

    Example:
        >>> from fedexp.hypergradients import AdamRule
        >>> rule = AdamRule(0.1, eps=0.0)
        >>> w, slots = rule.update(1.0, 5.0, rule.init(1.0), rule.values())
        >>> round(w, 6), slots["step"]  # The first step is η long, whatever the gradient.
        (0.9, 1.0)
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    eps: float = 1e-8
    decoupled: bool = False
    first_v: float = 0.0

    names: ClassVar[tuple[str, ...]] = ("lr", "beta1", "beta2", "weight_decay")
    scales: ClassVar[Mapping[str, Scale]] = {"beta1": BETWEEN_0_AND_1, "beta2": BETWEEN_0_AND_1}

    def init(self, param: Number) -> Slots:
        """``t = 0``, ``m = 0``, and ``v`` at its first value."""
        return {"step": 0.0, "m": zero(param), "v": zero(param) + self.first_v}

    def update(
        self, param: Number, grad: Number, slots: Slots, values: Values
    ) -> tuple[Number, Slots]:
        """One step."""
        _, slots, direction, _ = self._step(param, grad, slots, values)
        return param - values["lr"] * direction, slots

    def slopes(
        self, param: Number, grad: Number, slots: Slots, values: Values, names: Collection[str]
    ) -> dict[str, Number]:
        """By the quotient and chain rules on the formula of the class."""
        grad, new, direction, root = self._step(param, grad, slots, values)
        b1, b2, t = values["beta1"], values["beta2"], new["step"]
        c1, c2 = 1 - b1**t, 1 - b2**t
        found = {"lr": -direction}
        if "beta1" in names:
            # m̂ = m / (1-β₁ᵗ) and ∂m/∂β₁ = m_old - g; here dm = ∂m̂/∂β₁.
            dm = (slots["m"] - grad) / c1 + new["m"] * (t * b1 ** (t - 1) / c1**2)
            found["beta1"] = -values["lr"] * dm / (root + self.eps)
        if "beta2" in names:
            # Likewise dv = ∂v̂/∂β₂; then ∂(1/(√v̂ + ε)) = -dv / (2√v̂ (√v̂ + ε)²). Where v̂ = 0
            # so is dv: its divisor may be any number but 0.
            dv = (slots["v"] - grad * grad) / c2 + new["v"] * (t * b2 ** (t - 1) / c2**2)
            by_root = new["m"] / c1 / (root + self.eps) / (root + self.eps)
            found["beta2"] = values["lr"] * by_root * dv / (2 * no_zero(root))
        return found

    def _step(
        self, param: Number, grad: Number, slots: Slots, values: Values
    ) -> tuple[Number, Slots, Number, Number]:
        """What a step and its slopes share: ``g``, the new state, ``(w - w_new) / η``, ``√v̂``."""
        b1, b2, decay, t = (
            values["beta1"],
            values["beta2"],
            values["weight_decay"],
            slots["step"] + 1,
        )
        grad = grad if self.decoupled else decayed(grad, param, decay)
        m = b1 * slots["m"] + (1 - b1) * grad
        v = b2 * slots["v"] + (1 - b2) * (grad * grad)
        root = (v / (1 - b2**t)) ** 0.5
        direction = m / (1 - b1**t) / (root + self.eps)
        direction = decayed(direction, param, decay) if self.decoupled else direction
        return grad, {"step": t, "m": m, "v": v}, direction, root


@dataclass(frozen=True)
class RMSpropRule(Rule):
    """RMSprop: ``v ← αv + (1-α)g²``, ``w ← w - η g / (√v + ε)``; ``RMSprop`` for short.

    Tieleman & Hinton 2012, Coursera: Neural Networks for Machine Learning, lecture 6.5.

    Attributes:
        lr: ``η``, the learning rate.
        alpha: ``α``, from 0 to below 1; tuned through tanh.
        weight_decay: ``λ``. The gradient is ``g + λw``.
        eps: ``ε``, in units of the gradient.

    Raises:
        ValueError: A hyperparameter is out of its range, or a name in ``tuned`` cannot be tuned.

    Example:
        >>> from fedexp.hypergradients import RMSpropRule
        >>> rule = RMSpropRule(0.1, alpha=0.75, eps=0.0)
        >>> rule.update(1.0, 2.0, rule.init(1.0), rule.values())  # √v = 2 · √0.25
        (0.8, {'v': 1.0})
    """

    lr: float = 1e-2
    alpha: float = 0.99
    weight_decay: float = 0.0
    eps: float = 1e-8

    names: ClassVar[tuple[str, ...]] = ("lr", "alpha", "weight_decay")
    scales: ClassVar[Mapping[str, Scale]] = {"alpha": BETWEEN_0_AND_1}

    def init(self, param: Number) -> Slots:
        """``v = 0``."""
        return {"v": zero(param)}

    def update(
        self, param: Number, grad: Number, slots: Slots, values: Values
    ) -> tuple[Number, Slots]:
        """One step."""
        grad = decayed(grad, param, values["weight_decay"])
        v = values["alpha"] * slots["v"] + (1 - values["alpha"]) * (grad * grad)
        return param - values["lr"] * grad / (v**0.5 + self.eps), {"v": v}

    def slopes(
        self, param: Number, grad: Number, slots: Slots, values: Values, names: Collection[str]
    ) -> dict[str, Number]:
        """``∂u/∂η = -g/(√v + ε)``; ``∂u/∂α = η g/(√v + ε)² · (v_old - g²)/(2√v)``."""
        grad = decayed(grad, param, values["weight_decay"])
        square = grad * grad
        root = (values["alpha"] * slots["v"] + (1 - values["alpha"]) * square) ** 0.5
        direction = grad / (root + self.eps)
        if "alpha" not in names:
            return {"lr": -direction}
        dv = (slots["v"] - square) / (2 * no_zero(root))
        return {"lr": -direction, "alpha": values["lr"] * direction / (root + self.eps) * dv}


@dataclass(frozen=True)
class AdagradRule(Rule):
    """Adagrad: ``v ← v + g²``, ``w ← w - η g / (√v + ε)``; ``Adagrad`` for short.

    Duchi, Hazan & Singer 2011, JMLR 12.

    Attributes:
        lr: ``η``, the learning rate.
        weight_decay: ``λ``. The gradient is ``g + λw``.
        eps: ``ε``, in units of the gradient.
        first_v: The initial ``v``, in squared units of the gradient.

    Raises:
        ValueError: A hyperparameter is out of its range, or a name in ``tuned`` cannot be tuned.

    Example:
        >>> from fedexp.hypergradients import AdagradRule
        >>> rule = AdagradRule(0.1, eps=0.0)
        >>> rule.update(1.0, 2.0, rule.init(1.0), rule.values())
        (0.9, {'v': 4.0})
    """

    lr: float = 1e-2
    weight_decay: float = 0.0
    eps: float = 1e-10
    first_v: float = 0.0

    names: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")

    def init(self, param: Number) -> Slots:
        """``v`` at its first value."""
        return {"v": zero(param) + self.first_v}

    def update(
        self, param: Number, grad: Number, slots: Slots, values: Values
    ) -> tuple[Number, Slots]:
        """One step."""
        grad = decayed(grad, param, values["weight_decay"])
        v = slots["v"] + grad * grad
        return param - values["lr"] * grad / (v**0.5 + self.eps), {"v": v}

    def slopes(
        self, param: Number, grad: Number, slots: Slots, values: Values, names: Collection[str]
    ) -> dict[str, Number]:
        """``∂u/∂η = -g/(√v + ε)``."""
        grad = decayed(grad, param, values["weight_decay"])
        return {"lr": -grad / ((slots["v"] + grad * grad) ** 0.5 + self.eps)}


# The short names. Pickles of earlier versions refer to them.
Adam, RMSprop, Adagrad = AdamRule, RMSpropRule, AdagradRule
