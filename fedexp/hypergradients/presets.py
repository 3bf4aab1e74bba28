"""`HypergradientOptimizer` with one rule each, under the names of `torch.optim`.

    optimizer = HyperSGD(model.parameters(), lr=0.01, hyper=SGD(1e-3, hyper=SGD(1e-4)))

The arguments ``per``, ``foreach`` and ``maximize`` are those of `HypergradientOptimizer`. Further
keywords are attributes of the rule, of which ``hyper`` is the rule one level up.
"""

from typing import Any

from torch.optim.optimizer import ParamsT

from fedexp.hypergradients.adaptive_rules import AdagradRule, AdamRule, RMSpropRule
from fedexp.hypergradients.optimizer import HypergradientOptimizer, Per
from fedexp.hypergradients.rules import SGDRule


class HyperSGD(HypergradientOptimizer):
    """`SGDRule`, tuned by the rules above it.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGD, HyperSGD
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = HyperSGD([w], 0.1, momentum=0.9, hyper=SGD(1e-3))
        >>> (w @ w).backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.8000, 0.8000])
    """

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
    """`AdamRule`, tuned by the rules above it.

    Args:
        params: As of `HypergradientOptimizer`.
        lr: ``η``, the learning rate.
        betas: ``beta1`` and ``beta2`` in one argument, as in `torch.optim`.

    Raises:
        ValueError: Both ``betas`` and one of these are given.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGD, HyperAdam
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = HyperAdam([w], 0.1, (0.9, 0.99), tuned=("lr", "beta1"), hyper=SGD(1e-3))
        >>> (w @ w).backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.9000, 0.9000])
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
    """AdamW: `HyperAdam` with decoupled weight decay, by default 0.01.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGD, HyperAdamW
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = HyperAdamW([w], 0.1, hyper=SGD(1e-3))
        >>> (w @ w).backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.8990, 0.8990])
    """

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
    """`RMSpropRule`, tuned by the rules above it.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGD, HyperRMSprop
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = HyperRMSprop([w], 0.1, alpha=0.75, hyper=SGD(1e-3))
        >>> (w @ w).backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.8000, 0.8000])
    """

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
    """`AdagradRule`, tuned by the rules above it.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients import SGD, HyperAdagrad
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = HyperAdagrad([w], 0.1, hyper=SGD(1e-3))
        >>> (w @ w).backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.9000, 0.9000])
    """

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
