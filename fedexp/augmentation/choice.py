"""Augmentations by name and schedule, as a command line gives them: ``noise(exponent=0.33)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedexp.augmentation.schedules import PowerLaw, Schedule, constant
from fedexp.extras import imported
from fedexp.specs import Spec, split_list

if TYPE_CHECKING:
    from torch import Tensor

    from fedexp.augmentation.transforms import Generators

# The function, the default scale, and what the exponent of the text is divided by. The exponent of
# noise is that of its variance, the paper's y, and the strength is its standard deviation.
_NAMED: dict[str, tuple[str, float, int]] = {
    "noise": ("fedexp.augmentation.transforms:gaussian_noise", 1.0, 2),
    "projection": ("fedexp.augmentation.transforms:random_projection", 0.5, 1),
    "crop": ("fedexp.augmentation.images:random_crop", 0.125, 1),
    "flip": ("fedexp.augmentation.images:random_flip", 1.0, 1),
    "jitter": ("fedexp.augmentation.images:color_jitter", 0.4, 1),
}
_RANK = "fedexp.augmentation.transforms:rank_projection"


@dataclass(frozen=True)
class Augmentation:
    """A random change of a batch whose strength follows a schedule.

    Attributes:
        function: ``module:name`` of a function ``(batch, strength, generator) -> batch``, which is
            imported when it is first used, because it may need PyTorch.
        strength: the strength by global step index; any callable.
        has_group_form: whether the function takes the batches of a group of clients at once, as
            those of this package do; otherwise it is called for each client.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import Augmentation
        >>> noise = Augmentation.of("noise(scale=0.1, exponent=0.33)")
        >>> noise.strength
        PowerLaw(scale=0.1, exponent=0.165, offset=1.0)
        >>> noise(torch.zeros(2, 3), 100, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """

    function: str
    strength: Schedule
    has_group_form: bool = True

    @classmethod
    def of(cls, text: str) -> Augmentation:
        """Read ``name`` or ``name(scale=, exponent=, offset=)``, or ``projection(rank=)``.

        The strength is a `PowerLaw`. The exponent of ``noise`` is that of its variance, and its
        scale that of its standard deviation; ``projection`` schedules the fraction of dimensions it
        drops. ``module:function`` is a function of your own.

        Raises:
            ValueError: the name or a setting is unknown, or a value is out of its range.
        """
        spec = Spec.of(text)
        own = ":" in spec.name
        if spec.name not in _NAMED and not own:
            raise ValueError(
                f"augmentation {spec.name!r}: unknown. Known: {sorted(_NAMED)}, and "
                "module:function of your own."
            )
        if spec.name == "projection" and set(spec.settings) == {"rank"}:
            return cls(_RANK, constant(_rank(spec.settings["rank"])))
        known = ["scale", "exponent", "offset"]
        if unknown := sorted(set(spec.settings) - set(known)):
            also = ", or rank alone" if spec.name == "projection" else ""
            raise ValueError(f"{spec.name}: unknown {unknown}. Known: {known}{also}.")
        function, scale, divisor = (spec.name, 1.0, 1) if own else _NAMED[spec.name]
        try:
            law = PowerLaw(**{"scale": scale, **spec.settings})
        except ValueError as error:  # say whose setting it is
            raise ValueError(str(error).replace("PowerLaw", spec.name, 1)) from None
        return cls(function, PowerLaw(law.scale, law.exponent / divisor, law.offset), not own)

    def __call__(self, batch: Tensor, step: int, generator: Generators) -> Tensor:
        """The changed batch at a global step; forms as in `fedexp.augmentation.transforms`."""
        function: Callable[..., Tensor] = imported("Augmentation", self.function)
        strength = self.strength(step)
        if self.has_group_form or not isinstance(generator, Sequence):
            return function(batch, strength, generator)
        import torch

        each = zip(batch, generator, strict=True)
        return torch.stack([function(x, strength, one) for x, one in each])


def augmentations_of(text: str) -> tuple[Augmentation, ...]:
    """Read several augmentations between commas; they are applied from left to right.

    Raises:
        ValueError: one of them cannot be read.

    Example:
        >>> from fedexp.augmentation import augmentations_of
        >>> [a.strength(0) for a in augmentations_of("flip, crop(scale=0.2, exponent=1)")]
        [1.0, 0.2]
    """
    return tuple(map(Augmentation.of, split_list(text)))


def augmented(
    batch: Tensor, augmentations: Iterable[Augmentation], step: int, generator: Generators
) -> Tensor:
    """The batch after all augmentations in turn.

    Args:
        batch: ``[b, *features]``, or ``[m, b, *features]`` for a group of ``m`` clients.
        augmentations: what to apply, first to last.
        step: the global step index ``t`` of the schedules.
        generator: one, or one for each client of a group.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import augmented
        >>> batch = torch.ones(4, 2)
        >>> augmented(batch, (), 0, torch.Generator()) is batch
        True
    """
    for change in augmentations:
        batch = change(batch, step, generator)
    return batch


def _rank(value: Any) -> int:
    if not isinstance(value, int) or value < 0 or isinstance(value, bool):
        raise ValueError(f"projection(rank={value}): must be an integer >= 0.")
    return value
