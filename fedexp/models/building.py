"""From the name of a model, or a user's own, to a module that fits a dataset."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from fedexp.datasets.dataset import Dataset
from fedexp.extras import imported
from fedexp.models.networks import MODELS, Shape

ModelChoice = str | nn.Module | Callable[..., nn.Module]
"""A model by name, a module, or what makes one."""


def build(name: ModelChoice, dataset: Dataset | None, *, seed: int = 0) -> nn.Module:
    """Make a model that fits a dataset.

    The same seed gives the same parameters, and no global generator is changed.

    Args:
        name: a key of `MODELS`, ``module:function`` for a function of the same two arguments, a
            class or function of these or of no arguments, or a module, which is copied.
        dataset: gives the shape of an input and the number of classes; None if it is not at hand.
        seed: of the initial parameters.

    Raises:
        ValueError: unknown name, or a model that cannot take these inputs.

    Example:
        >>> from fedexp.datasets import load
        >>> from fedexp.models import build
        >>> model = build("linear", load("synthetic-lr"))  # 60 features, ten classes
        >>> [tuple(p.shape) for p in model.parameters()]
        [(10, 60), (10,)]
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
        _seed(seed)
        return of_shape(name, tuple(inputs.shape[1:]), dataset.num_classes)


@lru_cache(maxsize=4)
def suited(name: ModelChoice, dataset: Dataset) -> Dataset:
    """Convert the inputs of ``dataset`` to the type that the model ``name`` takes.

    int64 inputs are tokens for ``char-lstm``, and for a model of your own that has an
    ``nn.Embedding``, ``nn.EmbeddingBag`` or a module with the attribute ``takes_tokens = True``.
    For any other model they are numbers, and become float32. All other inputs stay as they are.

    Args:
        name: as in `build`.
        dataset: the dataset to train on.

    Raises:
        ValueError: a model that cannot be built, or integers that float32 would round.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import from_arrays
        >>> from fedexp.models import suited
        >>> x, y = np.array([[1], [2]]), np.array([0, 1])
        >>> suited("linear", from_arrays(x, y, x, y)).train[0].dtype
        torch.float32
    """
    if dataset.train[0].dtype != torch.int64 or name == "char-lstm":
        return dataset
    is_own = not isinstance(name, str) or name not in MODELS
    if is_own and any(map(_takes_tokens, build(name, dataset).modules())):
        return dataset
    return dataset.as_numbers()


def of_shape(name: str, input_shape: Shape, num_outputs: int) -> nn.Module:
    """Make the model ``name`` for inputs of a shape, without any data.

    Args:
        name: a key of `MODELS`, or ``module:function``.
        input_shape: of one input.
        num_outputs: number of classes, or 0 for a regression.

    Raises:
        ValueError: unknown name, or a model that cannot take these inputs.

    Example:
        >>> import torch
        >>> from fedexp.models import of_shape
        >>> of_shape("mlp", (4,), 3)(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """
    return MODELS.get(name, partial(_made, name))(input_shape, num_outputs)


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
        _seed(seed)
        return _called(name, make, *args)


def _seed(seed: int) -> None:
    """As ``torch.manual_seed``, which notes its caller three times for devices that may come."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


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
