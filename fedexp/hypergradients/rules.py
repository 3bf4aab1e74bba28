"""Update rules as pure functions: a parameter, its gradient and its state in, the new ones out.

A rule is a frozen dataclass. Its `Rule.update` uses operators only, so the same text works on
Python floats, on tensors, and under `torch.func.vmap` and `torch.func.jvp`. A rule whose ``hyper``
is another rule is a tower: in ``SGDRule(0.01, hyper=SGDRule(1e-3, hyper=AdamRule(1e-4)))`` SGD
moves the weights, a second SGD moves the learning rate of the first, and Adam moves the learning
rate of the second.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from numbers import Real
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from fedexp.hypergradients.scales import Number, Scale

Slots: TypeAlias = dict[str, Number]
Values: TypeAlias = Mapping[str, Number]
_KINDS: dict[Any, tuple[Any, str]] = {
    "float": ((float, int, Real), "a number"),  # the first two take no search
    "bool": (bool, "True or False"),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An update rule and the rule above it, which tunes its hyperparameters.

    To add a rule, write a frozen dataclass that inherits from `Rule`, with `init` and `update`.
    Its derivatives then come from forward-mode differentiation; override `slopes` for a faster
    closed form. Source: Chandra et al. 2022, arXiv:1909.13371.

    Attributes:
        hyper: The rule one level up. None means that nothing is tuned.
        tuned: The names of the hyperparameters that it tunes. The others keep their values.
        lr_form: ``additive`` tunes the learning rate itself, as Chandra et al. do; ``log`` tunes
            its logarithm, so that a step multiplies the rate, which stays positive.
        normalised: Replaces the hypergradient ``⟨g, d⟩`` of the learning rate by the cosine of
            ``g`` and ``d`` (times the rate, if additive). One hyper learning rate then fits
            losses of any scale: the multiplicative rule of Baydin et al. 2018, arXiv:1703.04782.
        max_lr: The greatest learning rate allowed. The least is 0, or 1e-12 with ``log``.
        names: Class attribute: the names of all hyperparameters.
        scales: Class attribute: the `Scale` of each that can be tuned, but for ``lr``.

    Raises:
        ValueError: A hyperparameter is out of its range, a name in ``tuned`` cannot be tuned, or a
            rule that is normalised has more than ``lr`` there.

    Example:
        >>> from dataclasses import dataclass
        >>> from fedexp.hypergradients import Rule
        >>> @dataclass(frozen=True)
        ... class SignRule(Rule):
        ...     lr: float = 0.1
        ...     def update(self, param, grad, slots, values):
        ...         return param - values["lr"] * ((grad > 0) - (grad < 0)), slots
        >>> rule = SignRule(0.5)
        >>> rule.update(1.0, 3.0, rule.init(1.0), rule.values())
        (0.5, {})
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
        self._check_kinds()
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

    def _check_kinds(self) -> None:
        own: Any = type(self)
        owner, forms = own.__name__, ("additive", "log")
        if not isinstance(self.hyper, Rule | None):
            raise ValueError(f"{owner}(hyper={self.hyper!r}): must be a rule. Use SGD(1e-3), say.")
        if self.lr_form not in forms:
            raise ValueError(f"{owner}(lr_form={self.lr_form!r}): must be one of {forms}.")
        for name, kind, said in _kinds_of(own):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ValueError(f"{owner}({name}={value!r}): must be {said}.")
            if name in ("eps", "first_v", "max_lr") and not value >= 0:
                raise ValueError(f"{owner}({name}={value!r}): must be at least 0.")

    def values(self) -> dict[str, float]:
        """The value of each hyperparameter, by name."""
        return {name: getattr(self, name) for name in self.names}

    def scale(self, name: str) -> Scale:
        """The axis on which a hyperparameter is tuned.

        Raises:
            KeyError: It cannot be tuned.
        """
        return self._lr_scale if name == "lr" else self.scales[name]

    @cached_property
    def _lr_scale(self) -> Scale:
        return Scale(self.lr_form, 0.0 if self.lr_form == "additive" else 1e-12, self.max_lr)

    @property
    def tuned_names(self) -> tuple[str, ...]:
        """The hyperparameters that the rule above moves; empty if there is no such rule."""
        return self.tuned if self.hyper else ()

    def with_values(self, values: Mapping[str, float]) -> Self:
        """The same rule with other values of the hyperparameters named.

        Raises:
            ValueError: One of them is out of its range.
            TypeError: The rule has no such hyperparameter.
        """
        return replace(self, **dict[str, Any](values))

    def init(self, param: Number) -> Slots:
        """The state of one parameter before its first step, numbers or tensors by name."""
        return {}

    def update(
        self, param: Number, grad: Number, slots: Slots, values: Values
    ) -> tuple[Number, Slots]:
        """The parameter after one step, and its new state.

        Args:
            param: ``w``, a float or a tensor of any shape.
            grad: ``g``, of the same shape.
            slots: The state, as `init` or the last `update` returned it. It is not modified.
            values: The hyperparameters for this step, by name. Those of `self` are not read.

        Raises:
            NotImplementedError: The rule does not say how it steps.
        """
        raise NotImplementedError

    def slopes(
        self, param: Number, grad: Number, slots: Slots, values: Values, names: Collection[str]
    ) -> dict[str, Number]:
        """The derivative ``∂u/∂h`` of the new parameter by each hyperparameter in ``names``.

        It is found by forward-mode differentiation. The state before the step is held constant,
        as the one-step hypergradient wants. Where there is no derivative (a square root at 0),
        the result is 0. Closed forms may return more names than asked for.
        """
        if not isinstance(param, Tensor):
            # Differentiation needs tensors; float64 is exact for Python's floats.
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
        # The tanh form has no number for the ends of the range, so a tuned value stays inside.
        # A fixed one may lie on the end, e.g. beta1 = 0.
        low = self.scales[name].low if name in self.tuned_names else 0.0
        return low, self.scales[name].high


@cache
def _kinds_of(rule: Any) -> list[tuple[str, Any, str]]:
    """Each field that is a number or a truth value, its kind and how to say it."""
    kinds = {f.name: _KINDS.get(getattr(f.type, "__name__", f.type)) for f in fields(rule)}
    return [(name, *kind) for name, kind in kinds.items() if kind]


@cache
def forward_mode() -> Callable[..., tuple[Any, ...]]:
    """`torch.func.jvp`, after one call that absorbs a warning.

    On the first call torch warns of a deprecated function that torch itself uses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))
    return torch.func.jvp


@dataclass(frozen=True)
class SGDRule(Rule):
    """Gradient descent with momentum; ``SGD`` for short.

    ``g ← g + λw``, ``b ← μb + g``, ``w ← w - ηb``; with Nesterov's form ``w ← w - η(g + μb)``.
    With no ``hyper`` the steps are those of `torch.optim.SGD`.

    Attributes:
        lr: ``η``, the learning rate.
        momentum: ``μ``, from 0 to below 1; tuned additively.
        weight_decay: ``λ``, in units of the loss per squared parameter; tuned additively.
        nesterov: Whether to look ahead along the momentum.

    Raises:
        ValueError: A hyperparameter is out of its range, or a name in ``tuned`` cannot be tuned.

    Example:
        >>> from fedexp.hypergradients import SGDRule
        >>> rule = SGDRule(0.1, momentum=0.5)
        >>> w, slots = rule.update(1.0, 2.0, rule.init(1.0), rule.values())
        >>> w, slots
        (0.8, {'momentum': 2.0})
        >>> rule.slopes(1.0, 2.0, rule.init(1.0), rule.values(), ["lr"])
        {'lr': -2.0}
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
        """``b = 0``; without momentum, which is not tuned either, there is no state."""
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
        """``∂u/∂η = -d``, ``∂u/∂μ = -η ∂d/∂μ``, ``∂u/∂λ = -η ∂d/∂λ``, with ``d`` the direction."""
        lr, mu, look = values["lr"], values["momentum"], self.nesterov and bool(slots)
        grad = decayed(grad, param, values["weight_decay"])
        old = slots.get("momentum", 0.0)
        buffer = mu * old + grad if slots else grad
        found = {"lr": -(grad + mu * buffer if look else buffer)}
        if "momentum" in names:
            # d = g + μb and b = μb_old + g, so ∂d/∂μ = b + μb_old; plain: d = b, ∂d/∂μ = b_old.
            found["momentum"] = -lr * (buffer + mu * old if look else old)
        if "weight_decay" in names:
            # g holds λw, so ∂g/∂λ = ∂b/∂λ = w, and Nesterov's d has it 1 + μ times.
            found["weight_decay"] = -lr * ((1 + mu) * param if look else param)
        return found


SGD = SGDRule
"""The short name. Pickles of earlier versions refer to it."""


def zero(param: Number) -> Number:
    """Zero, of the kind and shape of the parameter.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.rules import zero
        >>> zero(3.0), zero(torch.ones(2))
        (0.0, tensor([0., 0.]))
    """
    return torch.zeros_like(param) if isinstance(param, Tensor) else 0.0


def decayed(grad: Number, param: Number, weight_decay: Number) -> Number:
    """The gradient with that of an L2 penalty: ``g + λw``.

    Args:
        grad: ``g``.
        param: ``w``.
        weight_decay: ``λ``. The float 0.0 costs nothing.

    Example:
        >>> from fedexp.hypergradients.rules import decayed
        >>> decayed(1.0, 4.0, 0.5)
        3.0
    """
    if isinstance(weight_decay, float) and weight_decay == 0.0:
        return grad
    return grad + weight_decay * param
