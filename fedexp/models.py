"""Models that fit the datasets: functions of (input shape, number of outputs).

``num_outputs`` is the number of classes, or 0 for a regression, whose model returns ``[batch]``.
All run under ``torch.func.functional_call``, and all but the LSTM under ``vmap`` over parameters
(with ``randomness="different"`` where there is dropout). None keeps a running statistic.
"""

import inspect
import math
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedexp.datasets.dataset import Dataset
from fedexp.extras import imported

Shape = tuple[int, ...]


Choice = str | nn.Module | Callable[..., nn.Module]
"""A model by name, a module, or what makes one."""


def build(name: Choice, dataset: Dataset | None, *, seed: int = 0) -> nn.Module:
    """A model that fits a dataset, the same for the same seed; global generators stay untouched.

    Args:
        name: a key of `MODELS`, ``module:function`` for a function of the same two arguments, a
            class or function of these or of no arguments, or a module, of which a copy is taken.
        dataset: gives the shape of an input and the number of classes; None if it is not here.
        seed: of the initial parameters.

    Raises:
        ValueError: unknown name, or a model that cannot take these inputs.
    """
    if isinstance(name, nn.Module):
        return deepcopy(name)
    if not isinstance(name, str):
        return _own(name, dataset, seed)
    if dataset is None:
        raise ValueError(f"build(name={name!r}): needs the data. Give a module or a class.")
    inputs = dataset.train[0]
    if name in MODELS and (name == "char-lstm") == inputs.is_floating_point():
        kind = "numbers" if inputs.is_floating_point() else f"characters ({inputs.dtype})"
        raise ValueError(
            f"build(name={name!r}): does not fit a dataset of {kind}. "
            "Use `char-lstm` for characters and another model for numbers, saved as floats."
        )
    if name == "char-lstm":
        _check_alphabet(dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return of_shape(name, tuple(inputs.shape[1:]), dataset.num_classes)


@lru_cache(maxsize=4)
def suited(name: Choice, dataset: Dataset) -> Dataset:
    """``dataset`` with its inputs as the model ``name`` takes them.

    int64 inputs are tokens to ``char-lstm``, and to a model of your own that has an
    ``nn.Embedding``, ``nn.EmbeddingBag`` or a module with the attribute ``takes_tokens = True``.
    To any other model they are numbers: float32. All other inputs stay.

    Raises:
        ValueError: a model that cannot be built, or integers that float32 would round.
    """
    if dataset.train[0].dtype != torch.int64 or name == "char-lstm":
        return dataset
    is_own = not isinstance(name, str) or name not in MODELS
    if is_own and any(map(_takes_tokens, build(name, dataset).modules())):
        return dataset
    return dataset.as_numbers()


def of_shape(name: str, input_shape: Shape, num_outputs: int) -> nn.Module:
    """The model ``name`` for inputs of a shape, without looking at any data."""
    return MODELS.get(name, partial(_made, name))(input_shape, num_outputs)


def linear(input_shape: Shape, num_outputs: int) -> nn.Module:
    """Logistic regression, or linear regression without intercept; starts at zero."""
    size = math.prod(input_shape)
    layer = nn.Linear(size, num_outputs or 1, bias=num_outputs > 0)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.Flatten(), layer, *_squeeze(num_outputs))


def mlp(input_shape: Shape, num_outputs: int, *, width: int = 128) -> nn.Module:
    """One hidden layer of rectified units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        nn.ReLU(),
        nn.Linear(width, num_outputs or 1),
        *_squeeze(num_outputs),
    )


def cnn(input_shape: Shape, num_outputs: int) -> nn.Module:
    """Two 3 x 3 convolutions (16, 32), each halved by pooling, then one linear layer."""
    channels, height, width = _image("cnn", input_shape, smallest=4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), num_outputs or 1),
        *_squeeze(num_outputs),
    )


def emnist_cnn(input_shape: Shape, num_outputs: int) -> nn.Module:
    """The CNN of FedExP's EMNIST experiment: 1.2 million parameters at 28 x 28.

    3 x 3 convolutions (32, 64), pooling, dropout ¼, 128 units, dropout ½. It is that of
    Reddi et al. 2021, arXiv:2003.00295, table 3.
    """
    channels, height, width = _image("emnist-cnn", input_shape, smallest=6)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_outputs or 1),
        *_squeeze(num_outputs),
    )


def resnet18(input_shape: Shape, num_outputs: int) -> nn.Module:
    """ResNet-18 for small images, batch norm replaced by group norm of two groups.

    He et al. 2016, arXiv:1512.03385, in the form for CIFAR (3 x 3 stem, no first pooling); group
    norm as Hsieh et al. 2020, arXiv:1910.00189, and the experiments of FedExP.
    """
    channels, _, _ = _image("resnet18", input_shape, smallest=8)
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [
        ResidualBlock(before, after, stride=1 if before == after else 2)
        for before, after in zip([64, *widths], widths, strict=False)
    ]
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        nn.GroupNorm(2, 64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_outputs or 1),
        *_squeeze(num_outputs),
    )


def char_lstm(input_shape: Shape, num_outputs: int) -> nn.Module:
    """Next character of a context ``[batch, length]``, whose alphabet is the set of classes."""
    return CharLSTM(num_outputs)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group norm, added to a (projected) identity."""

    plain_forward = True  # see fedexp.clients.known.is_plain

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.GroupNorm(2, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(2, after),
        )
        self.shortcut = nn.Sequential()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(2, after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``[batch, before, height, width]`` to ``after`` channels."""
        out: torch.Tensor = functional.relu(self.path(x) + self.shortcut(x))
        return out


class CharLSTM(nn.Module):
    """Embedding of 8, one LSTM layer, logits from its last state."""

    def __init__(self, num_letters: int, *, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_letters, 8)
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, num_letters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``[batch, length]`` to logits ``[batch, num_letters]``."""
        states, _ = self.lstm(self.embedding(tokens.long()))
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "emnist-cnn": emnist_cnn,
    "resnet18": resnet18,
    "char-lstm": char_lstm,
}


def _takes_tokens(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) or getattr(
        module, "takes_tokens", False
    )


def _check_alphabet(dataset: Dataset) -> None:
    lowest = min(int(x.min()) for x, _ in (dataset.train, dataset.test))
    highest = max(int(x.max()) for x, _ in (dataset.train, dataset.test))
    if not 0 <= lowest <= highest < dataset.num_classes:
        raise ValueError(
            f"build(name='char-lstm'): predicts the next of {dataset.num_classes} characters, the "
            f"inputs hold {lowest} to {highest}. Number characters alike in inputs and targets, or "
            "use a model of your own."
        )


def _own(make: Callable[..., nn.Module], dataset: Dataset | None, seed: int) -> nn.Module:
    """A module of a class or function of the user's own."""
    name = getattr(make, "__name__", type(make).__name__)
    if not callable(make):
        raise ValueError(f"model={name}: must be a name, a module, or a class or function of one.")
    parameters = inspect.signature(make).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in _COLLECTING]
    args: tuple[Any, ...] = ()
    if needed and dataset is None:
        raise ValueError(f"build(name={name}): needs the data. Give a module, or a class without.")
    if needed and dataset:
        args = tuple(dataset.train[0].shape[1:]), dataset.num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _called(name, make, *args)


_COLLECTING = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _made(name: str, shape: Shape, num_outputs: int) -> nn.Module:
    return _called(name, _imported(name), shape, num_outputs)


def _called(name: str, function: Callable[..., nn.Module], *args: Any) -> nn.Module:
    try:
        model = function(*args)
    except (Exception, SystemExit) as error:  # of any kind: it is the user's code
        line = str(error).partition("\n")[0]
        of = f" for input_shape={args[0]}, num_outputs={args[1]}" if args else ""
        raise ValueError(f"build(name={name!r}): {type(error).__name__}{of}: {line}.") from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"build(name={name!r}): the function gives {type(model).__name__}, must give a "
            "torch.nn.Module. Return the model."
        )
    return model


def _imported(name: str) -> Callable[[Shape, int], nn.Module]:
    if not name.partition(":")[2]:
        raise ValueError(
            f"build(name={name!r}): unknown model. Known: {', '.join(MODELS)}, "
            "or `module:function` of your own."
        )
    function: Callable[[Shape, int], nn.Module] = imported(f"build(name={name!r})", name)
    return function


def _image(owner: str, shape: Shape, *, smallest: int) -> Shape:
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ValueError(
            f"{owner}(input_shape={shape}): must be images [channels, height, width], at least "
            f"{smallest} x {smallest}. Use `mlp` or `linear`."
        )
    return shape


def _squeeze(num_outputs: int) -> list[nn.Module]:
    return [] if num_outputs else [nn.Flatten(0)]
