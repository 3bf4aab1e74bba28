"""What a device must know of the data that a model is for, and no more than that."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # which needs PyTorch
    from fedexp.datasets import Dataset

KEY = "data-description"
"""Setting of a message by which the server describes the data."""
_DTYPES = ("float32", "uint8", "int64")
_MAX_TEXT, _MAX_SIZE = 1 << 20, 1 << 30


@dataclass(frozen=True)
class DataDescription:
    """The form of inputs and targets.

    Attributes:
        shape: of one input.
        dtype: of inputs: ``float32``, or ``uint8`` or ``int64`` of tokens.
        num_classes: 0 for values of a regression.
        class_names: what the classes stand for, ``[num_classes]``; empty if they are numbers.
        columns: names of the features of a table; empty if they have no names.
        target: the column to learn, of a table.
        mean: is subtracted from every feature, or from every channel of images; empty for 0.
        std: what comes out is divided by it; empty for 1.

    Raises:
        ValueError: it contradicts itself.

    Example:
        >>> from fedexp.devices.data_description import DataDescription
        >>> DataDescription((2,), "float32", 2, class_names=("no", "yes")).class_names
        ('no', 'yes')
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        wrong = (
            self.dtype not in _DTYPES
            or not all(length > 0 for length in self.shape)
            or math.prod(self.shape) > _MAX_SIZE
            or self.num_classes < 0
            or (self.class_names and len(self.class_names) != self.num_classes)
            or (self.columns and self.shape != (len(self.columns),))
            or len(self.mean) not in (0, *self.shape[:1])
            or len(self.std) not in (0, *self.shape[:1])
            or not all(math.isfinite(x) for x in self.mean)
            or not all(0 < x < math.inf for x in self.std)
        )
        if wrong:
            raise ValueError(f"DataDescription: contradicts itself: {str(asdict(self))[:300]}")

    def text(self) -> str:
        """As one setting, of the key ``data-description``."""
        default = asdict(DataDescription((1,)))
        own = {name: x for name, x in asdict(self).items() if x != default[name]}
        return json.dumps({**own, "shape": self.shape})

    @classmethod
    def of_text(cls, text: str) -> DataDescription:
        """From ``text``.

        Raises:
            ValueError: it is no description.

        Example:
            >>> from fedexp.devices.data_description import DataDescription
            >>> described = DataDescription((3,), num_classes=2)
            >>> DataDescription.of_text(described.text()) == described
            True
        """
        try:
            if len(text) > _MAX_TEXT:
                raise ValueError("it is too long")
            given: dict[str, Any] = json.loads(text)
            lists = {
                "shape": int,
                "class_names": str,
                "columns": str,
                "mean": float,
                "std": float,
            }
            read: dict[str, Any] = {
                k: tuple(map(lists[k], x)) if k in lists else x for k, x in given.items()
            }
            return cls(**read)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{KEY}: cannot be read: {error}.") from None

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> DataDescription:
        """From the settings of a message.

        Raises:
            ValueError: the server sent none.
        """
        if not (text := settings.get(KEY)):
            raise ValueError(
                f"the server does not describe the data ({KEY}): a device cannot know what the "
                "model takes. Use `fedexp run`, or send description_of(dataset).text()."
            )
        return cls.of_text(str(text))


def description_of(
    dataset: Dataset,
    *,
    target: str = "",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> DataDescription:
    """What devices are told of a dataset like theirs; no value of it but names of classes.

    Args:
        dataset: of the server, with inputs of the kind that the model takes.
        target: the column to learn, of tables.
        mean: with which ``dataset`` was standardised, as the devices will be.
        std: likewise.
    """
    inputs = dataset.train[0]
    return DataDescription(
        tuple(inputs.shape[1:]),
        str(inputs.dtype).removeprefix("torch."),
        dataset.num_classes,
        dataset.class_names,
        dataset.columns,
        target,
        mean,
        std,
    )
