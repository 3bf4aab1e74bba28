"""The settings of a client: their keys and their defaults, which stand here alone.

Nothing heavy is imported, so that the command line can read them at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any, Self

from fedexp import keys
from fedexp.augmentation.choice import augmentations_of
from fedexp.augmentation.schedules import PowerLaw
from fedexp.clients.ranges import POSITIVE, Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_COUNT, _AT_LEAST_0 = Range(1, whole=True), Range()


def _setting(key: str, default: Any, range_: Range | None = None) -> Any:
    return field(default=default, metadata={"key": key, "range": range_})


@dataclass(frozen=True)
class ClientSettings:
    """What a client does with the model it gets.

    Attributes:
        num_steps: ``τ``, minibatch steps; not epochs.
        batch_size: examples a step.
        lr: ``η_l`` of this round.
        weight_decay: ``λ``; ``λ w`` is added to the gradient.
        max_grad_norm: gradients are scaled down to this norm; 0 for no clipping.
        proximal_mu: ``μ`` of FedProx, which adds ``μ/2 ‖w - w₀‖²`` to the loss, ``w₀`` being the
            parameters received. Li et al. 2020, arXiv:1812.06127.
        optimizer: the local optimizer, as ``named_optimizer`` takes it.
        hyper_lr: ``κ``, with which the learning rate is tuned, for the optimizers that have one.
        hyper_height: levels of the tower above the weights; the topmost rate is ``κ`` throughout.
        augmentation: random changes of every minibatch, as ``augmentations_of`` reads them; empty
            for none.
        lr_exponent: ``x >= 0`` of ``η_t = η_l (t + offset)^-x``; 0 for one rate throughout.
        lr_offset: that offset, greater than 0; 1 if there is no exponent.
        step_scheduler: of the learning rate over the steps of a round, as ``schedule`` takes it;
            empty for none.
        num_epochs: passes over the client's examples in place of ``num_steps``, rounded up to
            whole steps, so that clients take unequally many; 0 for ``num_steps``.
        first_step: ``t`` of the first local step, see ``of``. It is no setting of its own.

    Example:
        >>> from fedexp.clients import ClientSettings
        >>> ClientSettings.of({"local-steps": 5, "learning-rate": 0.5}).num_steps
        5
        >>> second = {"local-steps": 2, "learning-rate": 1.0, "server-round": 2}
        >>> ClientSettings.of({**second, "learning-rate-exponent": 1.0}).rates()  # at t = 2 and 3
        [0.333..., 0.25]
    """

    num_steps: int = _setting("local-steps", 20, _COUNT)
    batch_size: int = _setting("batch-size", 20, _COUNT)
    lr: float = _setting(keys.LEARNING_RATE, 0.1, _AT_LEAST_0)
    weight_decay: float = _setting("weight-decay", 0.0, _AT_LEAST_0)
    max_grad_norm: float = _setting("max-grad-norm", 0.0, _AT_LEAST_0)
    proximal_mu: float = _setting("proximal-mu", 0.0, _AT_LEAST_0)
    optimizer: str = _setting("local-optimizer", "sgd")
    hyper_lr: float = _setting("hyper-learning-rate", 0.1, POSITIVE)
    hyper_height: int = _setting("hyper-height", 1, Range(1, 9, "[]", whole=True))
    augmentation: str = _setting("augmentation", "")
    lr_exponent: float = _setting("learning-rate-exponent", 0.0, _AT_LEAST_0)
    lr_offset: float = _setting("learning-rate-offset", 1.0, POSITIVE)
    step_scheduler: str = _setting("local-scheduler", "")
    num_epochs: float = _setting("local-epochs", 0.0, _AT_LEAST_0)
    first_step: int = 0

    def rates(self) -> list[float]:
        """``η_t`` of every local step of this round."""
        if self.step_scheduler:
            from fedexp.clients.schedules import step_rates  # which needs PyTorch

            return list(step_rates(self.step_scheduler, self.num_steps, self.lr))
        if not self.lr_exponent:
            return [self.lr] * self.num_steps
        law = PowerLaw(self.lr, self.lr_exponent, self.lr_offset)
        return [law(t) for t in range(self.first_step, self.first_step + self.num_steps)]

    @property
    def path_length(self) -> float:
        """``Σ η_t`` over the local steps; ``K η_l`` at one rate."""
        return sum(self.rates()) if self.rate_varies else self.num_steps * self.lr

    @property
    def rate_varies(self) -> bool:
        """Whether the local steps of a round have rates of their own."""
        return bool(self.lr_exponent or self.step_scheduler)

    def local_work(self, first_rate: float) -> float:
        """``‖a‖₁`` of plain SGD: what the gradients of a round weigh in its update, over a rate.

        ``w₀ - w_τ = Σ_t η_t Π_{s>t} (1 - η_s μ) g_t``, so with one rate and ``μ = 0`` it is the
        number of steps. Wang et al. 2020, arXiv:2007.07481, section 4.

        Args:
            first_rate: the rate that all clients measure in.
        """
        work = 0.0
        for rate in self.rates():
            work = work * (1 - rate * self.proximal_mu) + rate
        return work / first_rate

    def for_examples(self, num_examples: int) -> Self:
        """The settings of a client with so many examples: ``num_epochs`` in steps."""
        if not self.num_epochs:
            return self
        steps = max(1, ceil(self.num_epochs * num_examples / self.batch_size))
        rounds = self.first_step // self.num_steps
        return replace(self, num_steps=steps, first_step=rounds * steps)

    def check_optimizer(self, optimizer: object) -> None:
        """Raise ``ValueError`` for settings that the optimizer cannot go with."""
        if self.lr_exponent and getattr(optimizer, "adapts_lr", False):
            raise ValueError(
                f"ClientSettings(learning-rate-exponent={self.lr_exponent}): the local optimizer "
                f"{self.optimizer} tunes its own rate. Use 0, or another optimizer such as sgd."
            )
        if self.step_scheduler and getattr(optimizer, "adapts_lr", False):
            raise ValueError(
                f"ClientSettings(local-scheduler={self.step_scheduler!r}): the local optimizer "
                f"{self.optimizer} tunes its own rate. Use none, or another optimizer such as sgd."
            )
        own_work = getattr(optimizer, "tuning", None) or getattr(optimizer, "private", None)
        if (self.num_epochs or self.step_scheduler) and own_work:
            raise ValueError(
                f"ClientSettings(local-epochs={self.num_epochs}, local-scheduler="
                f"{self.step_scheduler!r}): {self.optimizer} takes local-steps at a rate of its "
                "own. Use neither, or another optimizer such as sgd."
            )
        if getattr(optimizer, "needs_loss", False) and not self.plain:
            raise ValueError(
                f"ClientSettings(proximal-mu={self.proximal_mu}, max-grad-norm="
                f"{self.max_grad_norm}): {self.optimizer} needs the gradient of its loss as it is. "
                "Use 0 for both, or another optimizer such as sgd."
            )

    @property
    def plain(self) -> bool:
        """Whether the optimizer gets the gradients as they are."""
        return not (self.proximal_mu or self.max_grad_norm)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From kebab-case keys; ``learning-rate`` decays by ``learning-rate-decay`` every round.

        ``η_l(t) = learning-rate · learning-rate-decay^t`` in round ``t = 1, 2, …``: the first
        round is decayed already, as in the FedExP authors' code. A key that is no setting belongs
        to the app.

        Schedules of steps run over the global step index ``t = (server-round - 1) · local-steps +
        k`` of a client, ``k = 0, 1, …`` within a round. Rounds in which a client does not train
        count too. So ``t`` needs no memory: it is the same in every engine and in a resumed run.

        Raises:
            ValueError: a key is so near to a setting that it must be a slip; a value is of
                another kind or out of its range; or the rate has two schedules.
        """
        _check_keys(frozenset(config))
        given = {key: _value(key, config[key]) for key in _DEFAULTS if key in config}
        decay = given.get("learning-rate-decay", ALSO["learning-rate-decay"])
        server_round = given.get(keys.SERVER_ROUND, ALSO[keys.SERVER_ROUND])
        own = {name: given[key] for key, name in KEYS.items() if key in given}
        lr = own.get("lr", cls.lr) * decay**server_round
        found = cls(**{**own, "lr": lr})
        if found.step_scheduler and found.lr_exponent:
            raise ValueError(
                f"ClientSettings(local-scheduler={found.step_scheduler!r}): learning-rate-exponent="
                f"{found.lr_exponent} is a schedule of local steps too. Leave one of the two out."
            )
        if not (found.augmentation or found.lr_exponent or found.lr_offset != 1):
            return found
        _check_schedules(found, decay)
        return replace(found, first_step=max(0, server_round - 1) * found.num_steps)

    def batches(self, num_examples: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Positions of every step's batch, ``[num_steps, batch_size]``.

        The examples are shuffled, gone through, shuffled again and so on. A batch may run from
        one pass into the next, so every batch is full even if the client has fewer examples.

        Raises:
            ValueError: there are no examples.
        """
        import numpy as np

        if not num_examples:
            raise ValueError("the client has no training examples. Give it some, or no partition.")
        wanted = self.num_steps * self.batch_size
        passes = -(-wanted // num_examples)
        order = [rng.permutation(num_examples) for _ in range(passes)]
        return np.concatenate(order)[:wanted].reshape(self.num_steps, self.batch_size)


LocalTraining = ClientSettings
"""The name of ``ClientSettings`` in earlier versions."""

KEYS: dict[str, str] = {
    x.metadata["key"]: x.name for x in fields(ClientSettings) if "key" in x.metadata
}
"""Kebab-case key of a setting to the attribute of ``ClientSettings``."""

ALSO: dict[str, Any] = {
    "learning-rate-decay": 1.0,
    keys.BETWEEN_ROUNDS: "fresh",
    "seed": 0,
    keys.SERVER_ROUND: 0,
    keys.FINAL_LOSS: False,
}
"""Keys that clients read besides, and what holds where they are absent."""

_DEFAULTS = {key: getattr(ClientSettings, name) for key, name in KEYS.items()} | ALSO
_BETWEEN_ROUNDS = "fresh", "carry", "average"
_RANGES: dict[str, Range | None] = {
    **{x.metadata["key"]: x.metadata["range"] for x in fields(ClientSettings) if x.metadata},
    "learning-rate-decay": Range(0, 1, "(]"),
    "seed": Range(whole=True),
    keys.SERVER_ROUND: Range(whole=True),
}


def fault_of(key: str, value: Any) -> str:
    """Why a client cannot take ``value`` for ``key``, as the end of a line; empty if it can.

    Example:
        >>> from fedexp.clients.settings import fault_of
        >>> fault_of("learning-rate", -1), fault_of("local-steps", 2.5)
        ('must be at least 0', 'must be a whole number')
    """
    if allowed := _RANGES.get(key):
        return allowed.fault(_read(value))
    if isinstance(_DEFAULTS[key], bool):
        return "" if value in (True, False) else "must be true or false"
    if not isinstance(value, str):
        return "must be text"
    known = key != keys.BETWEEN_ROUNDS or value in _BETWEEN_ROUNDS
    return "" if known else f"must be one of {', '.join(_BETWEEN_ROUNDS)}"


def _read(value: Any) -> Any:
    """The number that text holds, as ``Config`` reads it; anything else is what it is."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _value(key: str, value: Any) -> Any:
    """``value`` as the type of the default of ``key``."""
    try:
        return _looked_at(key, value)
    except TypeError:  # a list has no hash
        return _looked_at.__wrapped__(key, value)


@lru_cache(maxsize=1024, typed=True)  # 1 and true are not the same here
def _looked_at(key: str, value: Any) -> Any:
    """As ``_value``: all clients of a round have the same settings."""
    if why := fault_of(key, value):
        raise ValueError(f"ClientSettings({key}={value!r}): {why}.")
    return type(_DEFAULTS[key])(_read(value) if _RANGES.get(key) else value)


def _check_schedules(settings: ClientSettings, decay: float) -> None:
    """Raise ``ValueError`` for schedules of local steps that cannot be."""
    changes_of(settings.augmentation)  # what is wrong with it shows now
    exponent = settings.lr_exponent
    if not exponent and settings.lr_offset != 1:
        raise ValueError(
            f"ClientSettings(learning-rate-offset={settings.lr_offset}): a rate without "
            "learning-rate-exponent does not fall. Give one, or leave the offset out."
        )
    if exponent and decay != 1:
        raise ValueError(
            f"ClientSettings(learning-rate-exponent={exponent}): learning-rate-decay={decay} is a "
            "schedule too. Leave one of the two out."
        )


changes_of = lru_cache(maxsize=64)(augmentations_of)
"""``augmentations_of``, which every client of a round asks the same."""


@lru_cache(maxsize=64)
def _check_keys(given: frozenset[str]) -> None:
    known = (*KEYS, *ALSO)
    for key in sorted(given.difference(known)):
        if near := get_close_matches(key, known, 1, cutoff=0.9):
            raise ValueError(
                f"ClientSettings({key}): no such setting. Did you mean {near[0]!r}? "
                "A key of your own needs a name less like it."
            )
