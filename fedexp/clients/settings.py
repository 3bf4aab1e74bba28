"""The settings of a client: their keys and their defaults, which stand here alone.

Nothing heavy is imported, so that the command line can read them at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from fedexp import keys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _setting(key: str, default: Any) -> Any:
    return field(default=default, metadata={"key": key})


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

    Example:
        >>> ClientSettings.of({"local-steps": 5, "learning-rate": 0.5}).num_steps
        5
    """

    num_steps: int = _setting("local-steps", 20)
    batch_size: int = _setting("batch-size", 20)
    lr: float = _setting(keys.LEARNING_RATE, 0.1)
    weight_decay: float = _setting("weight-decay", 0.0)
    max_grad_norm: float = _setting("max-grad-norm", 0.0)
    proximal_mu: float = _setting("proximal-mu", 0.0)
    optimizer: str = _setting("local-optimizer", "sgd")
    hyper_lr: float = _setting("hyper-learning-rate", 0.1)
    hyper_height: int = _setting("hyper-height", 1)

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

        Raises:
            ValueError: a key is so near to a setting that it must be a slip; or a value is no
                number, or a count below 1.
        """
        _check_keys(frozenset(config))
        decay = config.get("learning-rate-decay", ALSO["learning-rate-decay"])
        given = {
            name: _value(key, config[key], getattr(cls, name))
            for key, name in KEYS.items()
            if key in config
        }
        lr = given.get("lr", cls.lr) * decay ** config.get(keys.SERVER_ROUND, 0)
        return cls(**{**given, "lr": lr})

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

KEYS: dict[str, str] = {x.metadata["key"]: x.name for x in fields(ClientSettings)}
"""Kebab-case key of a setting to the attribute of ``ClientSettings``."""

ALSO: dict[str, Any] = {
    "learning-rate-decay": 1.0,
    keys.BETWEEN_ROUNDS: "fresh",
    "seed": 0,
    keys.SERVER_ROUND: 0,
    keys.FINAL_LOSS: False,
}
"""Keys that clients read besides, and what holds where they are absent."""


def _value(key: str, value: Any, default: Any) -> Any:
    """``value`` as the type of ``default``."""
    try:
        found = type(default)(value)
    except (TypeError, ValueError):
        raise ValueError(f"ClientSettings({key}={value!r}): must be a number.") from None
    if isinstance(default, int) and found < 1:  # steps, examples or levels
        raise ValueError(f"ClientSettings({key}={value!r}): must be at least 1.")
    return found


@lru_cache(maxsize=64)
def _check_keys(given: frozenset[str]) -> None:
    known = (*KEYS, *ALSO)
    for key in sorted(given.difference(known)):
        if near := get_close_matches(key, known, 1, cutoff=0.9):
            raise ValueError(
                f"ClientSettings({key}): no such setting. Did you mean {near[0]!r}? "
                "A key of your own needs a name less like it."
            )
