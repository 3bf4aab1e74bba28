"""`Hypergradient` under the names of `torch.optim`.

optimizer = HyperSGD(model.parameters(), lr=0.01, hyper=SGD(1e-3, hyper=SGD(1e-4)))
"""

from typing import Any

from torch.optim.optimizer import ParamsT

from fedexp.clients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.clients.hypergradient import Hypergradient
from fedexp.clients.units import Per
from fedexp.clients.update_rules import SGD


class HyperSGD(Hypergradient):
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
        super().__init__(params, SGD(lr, **rule), per=per, foreach=foreach, maximize=maximize)


class HyperAdam(Hypergradient):
    """`Hypergradient` of `Adam`; further keywords are that rule's."""

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
        tower = Adam(lr, **rule)
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)


class HyperAdamW(Hypergradient):
    """AdamW: `HyperAdam` with decoupled weight decay."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        weight_decay: float = 1e-2,
        per: Per = "group",
        foreach: bool = True,
        maximize: bool = False,
        **rule: Any,
    ) -> None:
        tower = Adam(lr, weight_decay=weight_decay, decoupled=True, **rule)
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)


class HyperRMSprop(Hypergradient):
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
        tower = RMSprop(lr, **rule)
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)


class HyperAdagrad(Hypergradient):
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
        tower = Adagrad(lr, **rule)
        super().__init__(params, tower, per=per, foreach=foreach, maximize=maximize)
