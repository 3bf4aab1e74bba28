"""`Hypergradient` under the names of `torch.optim`.

optimizer = HyperSGD(model.parameters(), lr=0.01, hyper=SGDRule(1e-3, hyper=SGDRule(1e-4)))
"""

from typing import Any

from torch.optim.optimizer import ParamsT

from fedexp.hypergradients.adaptive_rules import AdagradRule, AdamRule, RMSpropRule
from fedexp.hypergradients.optimizer import HypergradientOptimizer, Per
from fedexp.hypergradients.rules import SGDRule


class HyperSGD(HypergradientOptimizer):
    """`Hypergradient` of `SGD`; further keywords are that rule's."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        per: Per = "group",
        foreach: bool = True,
        maximize: bool = False,
        **rule: Any,
    ) -> None:
        super().__init__(params, SGDRule(lr, **rule), per=per, foreach=foreach, maximize=maximize)


class HyperAdam(HypergradientOptimizer):
    """`Hypergradient` of `Adam`; ``betas`` are ``beta1, beta2``, further keywords that rule's.

    Raises:
        ValueError: ``betas`` and one of them are given.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] | None = None,
        *,
        per: Per = "group",
        foreach: bool = True,
        maximize: bool = False,
        **rule: Any,
    ) -> None:
        tower = AdamRule(lr, **_with_betas("HyperAdam", betas, rule))
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)


class HyperAdamW(HypergradientOptimizer):
    """AdamW: `HyperAdam` with decoupled weight decay."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] | None = None,
        *,
        weight_decay: float = 1e-2,
        per: Per = "group",
        foreach: bool = True,
        maximize: bool = False,
        **rule: Any,
    ) -> None:
        rule = _with_betas("HyperAdamW", betas, rule)
        tower = AdamRule(lr, weight_decay=weight_decay, decoupled=True, **rule)
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)


class HyperRMSprop(HypergradientOptimizer):
    """`Hypergradient` of `RMSprop`; further keywords are that rule's."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        per: Per = "group",
        foreach: bool = True,
        maximize: bool = False,
        **rule: Any,
    ) -> None:
        tower = RMSpropRule(lr, **rule)
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)


class HyperAdagrad(HypergradientOptimizer):
    """`Hypergradient` of `Adagrad`; further keywords are that rule's."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        per: Per = "group",
        foreach: bool = True,
        maximize: bool = False,
        **rule: Any,
    ) -> None:
        tower = AdagradRule(lr, **rule)
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)


def _with_betas(
    owner: str, betas: tuple[float, float] | None, rule: dict[str, Any]
) -> dict[str, Any]:
    if betas is None:
        return rule
    if twice := rule.keys() & {"beta1", "beta2"}:
        raise ValueError(f"{owner}(betas={betas}): {min(twice)} is given too. Leave one out.")
    beta1, beta2 = betas
    return {**rule, "beta1": beta1, "beta2": beta2}
