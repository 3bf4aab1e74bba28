"""Update rules as pure functions: a parameter, its gradient and state in, the new ones out.

A rule is a frozen dataclass. Its `update` uses operators only, so one text serves Python floats,
tensors, `torch.func.vmap` (every client its own learning rate) and `torch.func.jvp`. A rule whose
`hyper` is another rule is a tower: ``SGD(0.01, hyper=SGD(1e-3, hyper=Adam(1e-4)))`` moves the
weights by SGD, their learning rate by SGD, and that one's by Adam.

To add a rule, subclass `Rule` and write `init` and `update`; its derivatives come by forward mode.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.scales import Number, Scale

Slots: TypeAlias = dict[str, Number]
Values: TypeAlias = Mapping[str, Number]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What every rule has: the rule that tunes it, and how.

    Attributes:
        hyper: The rule one level up, which tunes this one's hyperparameters.
        tuned: Their names; the others stay as given.
        lr_form: ``additive`` as in Chandra et al. 2022, or ``log``, where steps are factors.
        normalised: Replace the hypergradient ``⟨g, d⟩`` of the learning rate by the cosine of
            ``g`` and ``d`` (times the rate, if additive), so that one hyper learning rate fits
            losses of any scale: Baydin et al. 2018's multiplicative rule.
        max_lr: Greatest learning rate; the least is 0 (``log``: ``1e-12``).
    """

    hyper: "Rule | None" = None
    tuned: tuple[str, ...] = ("lr",)
    lr_form: Literal["additive", "log"] = "additive"
    normalised: bool = False
    max_lr: float = 1e3

    names: ClassVar[tuple[str, ...]] = ("lr",)
    scales: ClassVar[Mapping[str, Scale]] = {}

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if unknown := [n for n in self.tuned if n not in (*self.scales, "lr")]:
            raise ValueError(
                f"{owner}(tuned={unknown}): not tunable. Choose from {['lr', *self.scales]}."
            )
        if self.normalised and self.tuned != ("lr",):
            raise ValueError(
                f"{owner}(tuned={self.tuned}): normalised, only lr is tuned: the slopes of others "
                "vanish at first, and have no angle. Tune lr alone."
            )
        for name, value in self.values().items():
            low, high = self._range(name)
            if not low <= value <= high:
                raise ValueError(f"{owner}({name}={value}): must lie in [{low:g}, {high:g}].")

    def values(self) -> dict[str, float]:
        """The hyperparameters by name."""
        return {name: getattr(self, name) for name in self.names}

    def scale(self, name: str) -> Scale:
        """The axis that a hyperparameter is tuned on."""
        return self._lr_scale if name == "lr" else self.scales[name]

    @cached_property
    def _lr_scale(self) -> Scale:
        return Scale(self.lr_form, 0.0 if self.lr_form == "additive" else 1e-12, self.max_lr)

    @property
    def tuned_names(self) -> tuple[str, ...]:
        """The hyperparameters that the rule above moves; none without it."""
        return self.tuned if self.hyper else ()

    def with_values(self, values: Mapping[str, float]) -> Self:
        """The same rule at other values of its hyperparameters."""
        return replace(self, **dict[str, Any](values))

    def init(self, param: Number) -> Slots:
        """The state of one parameter before its first step."""
        return {}

    def update(
        self, param: Number, grad: Number, slots: Slots, values: Values
    ) -> tuple[Number, Slots]:
        """The parameter after one step, and its state."""
        raise NotImplementedError

    def slopes(
        self, param: Number, grad: Number, slots: Slots, values: Values, names: Collection[str]
    ) -> dict[str, Number]:
        """``∂ new parameter / ∂ h`` for each hyperparameter named, by forward differentiation.

        State is held constant, as in the one-step hypergradient. Coordinates without a
        derivative (a square root at 0) count as 0.
        """
        if not isinstance(param, Tensor):
            exact = torch.float64
            tensors = {k: torch.tensor(v, dtype=exact) for k, v in slots.items()}
            at = torch.tensor(param, dtype=exact), torch.tensor(grad, dtype=exact)
            return {k: v.item() for k, v in self.slopes(*at, tensors, values, names).items()}

        def slope(name: str) -> Tensor:
            at = torch.as_tensor(values[name], dtype=torch.float64, device=param.device)
            tangent = forward_mode()(
                lambda h: self.update(param, grad, slots, {**values, name: h})[0],
                (at,),
                (torch.ones_like(at),),
            )[1]
            return torch.nan_to_num(tangent, nan=0.0, posinf=0.0, neginf=0.0)

        return {name: slope(name) for name in names}

    def _range(self, name: str) -> tuple[float, float]:
        if name == "lr":
            return self.scale(name).low, self.max_lr
        if name not in self.scales:
            return 0.0, float("inf")
        # A value that does not move may sit on the end, e.g. beta1 = 0.
        low = self.scales[name].low if name in self.tuned_names else 0.0
        return low, self.scales[name].high


@cache
def forward_mode() -> Callable[..., tuple[Any, ...]]:
    """`torch.func.jvp`, past the deprecation that torch raises at itself on the first call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))
    return torch.func.jvp


@dataclass(frozen=True)
class SGDRule(Rule):
    """Gradient descent, with momentum.

    ``g ← g + λw``, ``b ← μb + g``, ``w ← w - ηb``; Nesterov: ``w ← w - η(g + μb)``.

    Attributes:
        lr: ``η``.
        momentum: ``μ``; tuned additively.
        weight_decay: ``λ``; tuned additively.
        nesterov: Look ahead along the momentum.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    names: ClassVar[tuple[str, ...]] = ("lr", "momentum", "weight_decay")
    scales: ClassVar[Mapping[str, Scale]] = {
        "momentum": Scale("additive", 0.0, 1 - 1e-6),
        "weight_decay": Scale("additive", 0.0, 1e3),
    }

    def init(self, param: Number) -> Slots:
        """``b = 0`` where there is momentum."""
        return {"momentum": zero(param)} if self.momentum or "momentum" in self.tuned else {}

    def update(
        self, param: Number, grad: Number, slots: Slots, values: Values
    ) -> tuple[Number, Slots]:
        """One step."""
        grad = decayed(grad, param, values["weight_decay"])
        if not slots:
            return param - values["lr"] * grad, {}
        buffer = values["momentum"] * slots["momentum"] + grad
        direction = grad + values["momentum"] * buffer if self.nesterov else buffer
        return param - values["lr"] * direction, {"momentum": buffer}

    def slopes(
        self, param: Number, grad: Number, slots: Slots, values: Values, names: Collection[str]
    ) -> dict[str, Number]:
        """``∂w/∂η = -direction``; ``∂w/∂μ``, ``∂w/∂λ`` are ``-η`` times those of ``direction``."""
        lr, mu, look = values["lr"], values["momentum"], self.nesterov and bool(slots)
        grad = decayed(grad, param, values["weight_decay"])
        old = slots.get("momentum", 0.0)
        buffer = mu * old + grad if slots else grad
        found = {"lr": -(grad + mu * buffer if look else buffer)}
        if "momentum" in names:
            found["momentum"] = -lr * (buffer + mu * old if look else old)
        if "weight_decay" in names:
            found["weight_decay"] = -lr * ((1 + mu) * param if look else param)
        return found


SGD = SGDRule
"""The short name; rules that were pickled under it can be read."""


def zero(param: Number) -> Number:
    """Zero of the parameter's kind and shape."""
    return torch.zeros_like(param) if isinstance(param, Tensor) else 0.0


def decayed(grad: Number, param: Number, weight_decay: Number) -> Number:
    """The gradient with an L2 penalty; no work where there is none."""
    if isinstance(weight_decay, float) and weight_decay == 0.0:
        return grad
    return grad + weight_decay * param
