"""A trial of a model before the first round: one forward pass, loss and step on a few rows.

What cannot be trained or sent fails here at once and in one line, not at every client and every
round. The model, its mode and PyTorch's random state are afterwards as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedexp.clients.augmented import check_augmentation
from fedexp.clients.data import Examples
from fedexp.clients.local_optimizers import LocalOptimizer, OptimizerFn
from fedexp.clients.loop import evaluate
from fedexp.clients.losses import Loss, classes_for, default_loss
from fedexp.clients.module import layout_of, load_arrays, module_arrays
from fedexp.clients.settings import ClientSettings
from fedexp.clients.trial_step import TrialStep, names_a_setting

_SENT = {torch.float16, torch.float32, torch.float64}


def try_model(
    owner: str,
    module: nn.Module,
    examples: Examples,
    optimizer: OptimizerFn,
    settings: ClientSettings,
    loss: Loss = default_loss,
) -> None:
    """Raise unless ``module`` can take a local step on ``examples``.

    Args:
        owner: what named the model, for the message.
        module: on a CPU.
        examples: of all clients; the rows with the largest class and token are among those tried.
        optimizer: as in ``client_app``.
        settings: of the clients; one step is taken, on no more rows than are tried.
        loss: of outputs and targets.

    Raises:
        ValueError: arrays that cannot be sent, nothing to train, an augmentation that cannot
            change these inputs, or whatever the model, the loss or the optimizer raises.
    """
    _check_arrays(owner, module)
    rows = _telling_rows(examples)
    few = Examples(*examples.take(rows))
    settings.check_optimizer(optimizer)
    check_augmentation(settings, few.inputs)
    settings = replace(settings, num_steps=1, batch_size=min(settings.batch_size, len(rows)))
    with _undone(module):
        names = module_arrays(module).keys()
        _check_loss(owner, module, few, loss)
        _check_step(owner, TrialStep(module, few, optimizer, settings, loss))
        with _named(owner, "an evaluation"):
            evaluate(module, few, loss)
        if module_arrays(module).keys() != names:
            raise ValueError(f"{owner}: forward makes arrays. Make them in the constructor.")


def _check_step(owner: str, step: TrialStep) -> None:
    """Raise if the step fails, in the name of what is the cause."""
    if isinstance(step.optimizer, LocalOptimizer):  # whose own errors are lines already
        step.optimizer(step.parameters, step.settings)
    try:
        step.take()
    except Exception as error:  # of any kind: it may be the user's code
        if names_a_setting(error):
            raise
        with _named(*step.cause(owner)):
            raise


def _check_arrays(owner: str, module: nn.Module) -> None:
    state = module.state_dict(keep_vars=True)
    arrays = [(name, x) for name, x in state.items() if isinstance(x, Tensor)]
    if lazy := [name for name, x in arrays if nn.parameter.is_lazy(x)]:
        raise ValueError(
            f"{owner}: {lazy[0]!r} of a lazy layer has no shape yet. Give its sizes, or run a "
            "batch through the model before you return it."
        )
    for name, x in arrays:
        if (x.is_floating_point() or x.is_complex()) and x.dtype not in _SENT:
            raise ValueError(
                f"{owner}: {name!r} is {x.dtype}, arrays that are sent are float16, float32 or "
                "float64. Return model.float()."
            )
    if not any(p.requires_grad and p.numel() for p in module.parameters()):
        raise ValueError(f"{owner}: has no parameter that learns. Set requires_grad on some.")


def _telling_rows(examples: Examples) -> Tensor:
    """At least two rows, among them those where a class or a token may be out of range."""
    x, y = examples.inputs, examples.targets
    rows = [0, len(y) - 1]
    if not y.is_floating_point():
        rows.append(int(y.reshape(len(y), -1).amax(1).argmax()))
    if not x.is_floating_point():
        each = x.reshape(len(x), -1)
        rows += [int(each.amax(1).argmax()), int(each.amin(1).argmin())]
    return torch.tensor(rows)


@contextmanager
def _undone(module: nn.Module) -> Iterator[None]:
    """Leave arrays, gradients, modes and PyTorch's generator as they were."""
    before = {name: x.copy() for name, x in module_arrays(module).items()}
    modes = [(m, m.training) for m in module.modules()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            if module_arrays(module).keys() == before.keys():
                load_arrays(module, before)
            for m, training in modes:
                m.training = training
            module.zero_grad()


def _check_loss(owner: str, module: nn.Module, few: Examples, loss: Loss) -> None:
    shape = f"inputs {few.inputs.dtype} {list(few.inputs.shape)}".replace("torch.", "")
    module.train()
    with _named(owner, f"forward with {shape}"):
        outputs = module(layout_of(module)(few.inputs))
    classes = classes_for(outputs, few.targets)
    if loss is default_loss and classes is not None and int(classes.max()) >= outputs.shape[1]:
        raise ValueError(
            f"{owner}: gives {outputs.shape[1]} outputs for the classes 0 to {int(classes.max())}. "
            "Give one for every class."
        )
    with _named(owner, f"the loss after a forward with {shape}"):
        value = loss(outputs, few.targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"{owner}: the loss is no single number. Return a mean over the batch.")
    if not bool(value.isfinite()):
        raise ValueError(
            f"{owner}: the loss of the first model is {value.item()}. Scale the inputs and targets "
            "(standardise them), or start from smaller weights."
        )
    if not value.requires_grad:
        raise ValueError(
            f"{owner}: the loss depends on no parameter. Call no detach or no_grad in forward."
        )


@contextmanager
def _named(owner: str, what: str, remedy: str = "Correct the model") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any kind: it is the user's code
        line = " ".join(str(error).split())[:300]
        if not (isinstance(error, ValueError) and line.endswith(".")):  # those of this package
            line = f"{type(error).__name__}: {line.rstrip('.')}. {remedy}."
        raise ValueError(f"{owner}: {what} fails: {line}") from error
