"""What a module or a loss computes, as far as its class alone says so.

A path that does not call them is right only for those that are known.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as hooks

_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_PARAMETER_HOOKS = "_backward_hooks", "_post_accumulate_grad_hooks"


def is_hooked(module: nn.Module) -> bool:
    """Whether passes through ``module`` run hooks: its own, its parameters' or global ones."""
    return (
        any(getattr(hooks, f"_global{kind}") for kind in _HOOKS)
        or any(getattr(part, kind) for part in module.modules() for kind in _HOOKS)
        or any(getattr(p, kind) for p in module.parameters() for kind in _PARAMETER_HOOKS)
    )


def is_torchs(layer: nn.Module) -> bool:
    """Whether calling this layer, hooks aside, runs what PyTorch wrote for its class.

    Not so for subclasses, parametrizations, compiled layers, and where ``forward`` is replaced.
    """
    own = {str(x.__module__) for x in (type(layer), type(layer).forward)}  # None after `exec`
    replaced = "forward" in vars(layer) or layer._compiled_call_impl is not None
    return all(name.startswith("torch.nn.modules.") for name in own) and not replaced


def writes_to_weights(layer: nn.Module) -> bool:
    """Whether the forward pass of one of PyTorch's layers changes its parameters."""
    return getattr(layer, "max_norm", None) is not None  # Embedding and EmbeddingBag


def has_plain_forward(module: nn.Module) -> bool:
    """Whether a pass is known to write to no parameter and to need no layout of its inputs.

    So are PyTorch's own layers, and classes with an attribute ``plain_forward = True``. Any other
    might call ``view``, or clamp its weights.
    """
    return not is_hooked(module) and all(
        (is_torchs(layer) and not writes_to_weights(layer))
        or (getattr(layer, "plain_forward", False) and "forward" not in vars(layer))
        for layer in module.modules()
    )
