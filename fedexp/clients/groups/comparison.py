"""Whether a group computes what its clients compute alone: tried out before groups are used.

A chain under the default loss is known to. Any other model or loss may do what a group cannot:
reach parameters past ``torch.func.functional_call``, draw random numbers, remember earlier calls.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import getstate, setstate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedexp.clients.groups.memory import Memory
from fedexp.clients.groups.stacked import gradients, losses_of
from fedexp.clients.losses import Loss
from fedexp.clients.objective import Objective
from fedexp.clients.settings import ClientSettings

Batch = tuple[Tensor, Tensor]


def what_differs(module: nn.Module, loss: Loss, batches: Sequence[Batch]) -> str:
    """What tells clients of a group, one for each of ``batches``, from clients alone.

    Empty if nothing does, to float tolerance. Random numbers, and the parameters of ``module``,
    are afterwards what they were.
    """
    start = {name: p.data for name, p in module.named_parameters()}
    try:
        with _undisturbed(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            warnings.filterwarnings("error", "There is a performance drop")  # one by one, then
            module.train()
            return _first_difference(module, loss, batches, start)
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        return f"a group raised {type(error).__name__}: {reason[0].rstrip('.')}"
    finally:
        _put(module, start)


def _first_difference(
    module: nn.Module, loss: Loss, batches: Sequence[Batch], start: Mapping[str, Tensor]
) -> str:
    clients = [_come_apart(start, seed) for seed in range(len(batches))]
    numbers, memory = _numbers(), Memory(module, loss)
    alone = []
    for params, batch in zip(clients, batches, strict=True):
        _put(module, {name: w.clone() for name, w in params.items()})
        with _only_plain_embeddings():
            value = Objective(module, loss, ClientSettings())(*batch)
        own: dict[str, Tensor] = {}
        for name, p in module.named_parameters():
            if p.grad is None:
                return f"{name} has no gradient"
            if not torch.equal(p, params[name]):
                return "forward writes to parameters"
            own[name] = p.grad
        alone.append({"the loss": value, **own})
    if _numbers() != numbers:
        return "forward or loss draw random numbers"
    if memory.changed():
        return "forward or loss keep something from one call to the next"
    # Whatever is not told which client's parameters to take, is to show.
    _put(module, {name: torch.full_like(w, torch.nan) for name, w in start.items()})
    stacks = {name: torch.stack([params[name] for params in clients]) for name in start}
    inputs, targets = (torch.stack(tensors) for tensors in zip(*batches, strict=True))
    grads, losses = gradients(losses_of(module, loss), stacks, inputs, targets)
    together = {"the loss": losses, **grads}
    for i, own in enumerate(alone):
        if name := _unlike({name: x[i] for name, x in together.items()}, own):
            return f"in a group, {name} comes out otherwise"
    return ""


def _come_apart(start: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The parameters of a client some steps later."""
    rng = torch.Generator().manual_seed(seed)
    return {name: w + 0.05 * torch.randn(w.shape, generator=rng).to(w) for name, w in start.items()}


def _put(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, p in module.named_parameters():
        p.data, p.grad = values[name], None


def _unlike(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first name under which they differ by more than rounding."""
    largest = max(float(x.abs().max()) for x in expected.values())
    for name, x in expected.items():
        eps = torch.finfo(x.dtype).eps
        allowed = eps**0.5 * float(x.abs().max()) + 100 * eps * largest
        if not float((got[name] - x).abs().max()) <= allowed:
            return name
    return ""


class _PlainEmbeddings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where rows of a table are looked up in any way but the plainest.

    Of padding and the like ``torch.func.vmap`` knows nothing, and not every batch has it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to hide this from PyTorch's compiler, torch imports it, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "embedding" in str(func) and "backward" not in str(func) and args[2:]:
            raise ValueError("an embedding with padding_idx, max_norm, sparse or the like")
        return func(*args, **(kwargs or {}))


class _HiddenFromCompiler(_PlainEmbeddings):  # type: ignore[no-untyped-call]
    """For models that are compiled: else the method would be compiled too, operator by operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)


def _only_plain_embeddings() -> _PlainEmbeddings:
    is_loaded = "torch._dynamo" in sys.modules  # as it is once something has been compiled
    mode = _HiddenFromCompiler if is_loaded else _PlainEmbeddings
    return mode()  # type: ignore[no-untyped-call]


def _numbers() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), getstate(), pickle.dumps(_numpy_state())


def _numpy_state() -> Any:
    """The state of NumPy's global generator, whichever kind a program has set."""
    return np.random.get_state(legacy=False)  # noqa: NPY002


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put back the states of all global generators, and the filters of warnings."""
    python, numpy = getstate(), _numpy_state()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            yield
    finally:
        setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
