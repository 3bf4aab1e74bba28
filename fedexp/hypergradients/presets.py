"""`HypergradientOptimizer` with one rule each, under the names of `torch.optim`.

    optimizer = HyperSGD(model.parameters(), lr=0.01, hyper=SGD(1e-3, hyper=SGD(1e-4)))

The arguments ``per``, ``foreach`` and ``maximize`` are those of `HypergradientOptimizer`. Further
keywords are attributes of the rule, of which ``hyper`` is the rule one level up.
"""

from collections.abc import Sequence
from typing import Any

from torch.optim.optimizer import ParamsT

from fedexp.hypergradients.adaptive_rules import AdagradRule, AdamRule, RMSpropRule
from fedexp.hypergradients.optimizer import HypergradientOptimizer, Per
from fedexp.hypergradients.rules import SGDRule


class HyperSGD(HypergradientOptimizer):
    """`SGDRule`, tuned by the rules above it.

    ``b ← μb + g``, ``d = b``, ``w ← w - ηd``; with Nesterov's form ``d = g + μb``.
    With ``hyper=SGD(κ)``, ``η ← η + κ⟨g, d⟩`` comes first, with ``d`` of the step before:
    Baydin et al. 2018, arXiv:1703.04782; towers of rules: Chandra et al. 2022, arXiv:1909.13371.

    Args:
        params, per, foreach, maximize: As of `HypergradientOptimizer`.
        lr: ``η``, the learning rate.
        **rule: The other attributes of `SGDRule`, of which ``hyper`` is the rule one level up.

    Raises:
        ValueError: A hyperparameter is out of its range, or a name in ``tuned`` cannot be tuned.
        TypeError: A keyword is no attribute of the rule.

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

    ``m ← β₁m + (1-β₁)g``, ``v ← β₂v + (1-β₂)g²``, ``d = (m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε)``,
    ``w ← w - ηd``. Kingma & Ba 2015, arXiv:1412.6980.
    With ``hyper=SGD(κ)``, ``η ← η + κ⟨g, d⟩`` comes first, with ``d`` of the step before:
    Baydin et al. 2018, arXiv:1703.04782; towers of rules: Chandra et al. 2022, arXiv:1909.13371.

    Args:
        params, per, foreach, maximize: As of `HypergradientOptimizer`.
        lr: ``η``, the learning rate.
        betas: ``β₁`` and ``β₂`` in one argument, as in `torch.optim`.
        **rule: The other attributes of `AdamRule`, of which ``hyper`` is the rule one level up.

    Raises:
        ValueError: A hyperparameter is out of its range, a name in ``tuned`` cannot be tuned, or
            ``betas`` and one of the two are given.
        TypeError: A keyword is no attribute of the rule.

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

    ``d = (m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε) + λw``, ``w ← w - ηd``, with ``m`` and ``v`` as there.
    Loshchilov & Hutter 2019, arXiv:1711.05101.
    With ``hyper=SGD(κ)``, ``η ← η + κ⟨g, d⟩`` comes first, with ``d`` of the step before:
    Baydin et al. 2018, arXiv:1703.04782; towers of rules: Chandra et al. 2022, arXiv:1909.13371.

    Args:
        params, per, foreach, maximize: As of `HypergradientOptimizer`.
        lr: ``η``, the learning rate.
        betas: ``β₁`` and ``β₂`` in one argument, as in `torch.optim`.
        weight_decay: ``λ``.
        **rule: The other attributes of `AdamRule`, of which ``hyper`` is the rule one level up.

    Raises:
        ValueError: A hyperparameter is out of its range, a name in ``tuned`` cannot be tuned, or
            ``betas`` and one of the two are given.
        TypeError: A keyword is no attribute of the rule.

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

    ``v ← αv + (1-α)g²``, ``d = g / (√v + ε)``, ``w ← w - ηd``. Tieleman & Hinton 2012, Coursera:
    Neural Networks for Machine Learning, lecture 6.5.
    With ``hyper=SGD(κ)``, ``η ← η + κ⟨g, d⟩`` comes first, with ``d`` of the step before:
    Baydin et al. 2018, arXiv:1703.04782; towers of rules: Chandra et al. 2022, arXiv:1909.13371.

    Args:
        params, per, foreach, maximize: As of `HypergradientOptimizer`.
        lr: ``η``, the learning rate.
        **rule: The other attributes of `RMSpropRule`, of which ``hyper`` is the rule one level up.

    Raises:
        ValueError: A hyperparameter is out of its range, or a name in ``tuned`` cannot be tuned.
        TypeError: A keyword is no attribute of the rule.

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

    ``v ← v + g²``, ``d = g / (√v + ε)``, ``w ← w - ηd``. Duchi, Hazan & Singer 2011, JMLR 12.
    With ``hyper=SGD(κ)``, ``η ← η + κ⟨g, d⟩`` comes first, with ``d`` of the step before:
    Baydin et al. 2018, arXiv:1703.04782; towers of rules: Chandra et al. 2022, arXiv:1909.13371.

    Args:
        params, per, foreach, maximize: As of `HypergradientOptimizer`.
        lr: ``η``, the learning rate.
        **rule: The other attributes of `AdagradRule`, of which ``hyper`` is the rule one level up.

    Raises:
        ValueError: A hyperparameter is out of its range, or a name in ``tuned`` cannot be tuned.
        TypeError: A keyword is no attribute of the rule.

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
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"{owner}(betas={betas!r}): must be a pair. Use (0.9, 0.999).")
    beta1, beta2 = betas
    return {**rule, "beta1": beta1, "beta2": beta2}
