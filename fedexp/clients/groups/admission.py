"""Which clients can be trained as a group, and how many at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from flwr.app import Context
from torch import nn

from fedexp.clients.client import Client
from fedexp.clients.data import batches_of
from fedexp.clients.groups.chain import Chain
from fedexp.clients.groups.comparison import what_differs
from fedexp.clients.known import is_hooked
from fedexp.clients.local_optimizers import LocalOptimizer
from fedexp.clients.losses import default_loss
from fedexp.clients.settings import ClientSettings

MOST = 64  # clients trained together; measured: more gain little
_CACHE = 5 << 20  # bytes of a group's parameters; measured: the best between 1 and 10 MiB


def obstacle_to(client: Client | None, context: Context) -> str:
    """Why the app's clients cannot be trained as a group; empty if they can."""
    if client is None:
        return "the ClientApp is not one of fedexp.clients.client_app"
    optimizer = client.optimizer
    if optimizer and not (isinstance(optimizer, LocalOptimizer) and optimizer.functional):
        name = getattr(optimizer, "line", optimizer)
        return f"the local optimizer {name} has no functional form"
    whole = client.module(context)
    if is_hooked(whole):
        return "hooks run with its passes"
    if not any(True for _ in whole.parameters()):
        return "the model has no parameters"
    if len(list(whole.named_modules(remove_duplicate=False))) > len(list(whole.modules())):
        return "a layer of the model has two names"  # functional_call would not restore it
    for module in whole.modules():
        if any(True for _ in module.buffers(recurse=False)):
            return f"{type(module).__name__} keeps buffers"
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.RNNBase):
            return f"{type(module).__name__} draws or runs outside vmap"
        if any(not p.requires_grad for p in module.parameters(recurse=False)):
            return f"{type(module).__name__} has frozen parameters"
    return ""


def unlike(client: Client, context: Context) -> str:
    """What a group computes otherwise than its clients alone; empty if nothing.

    Tried on two minibatches of this client, at the parameters that the model begins with: so it
    is the same in every process, and in a run that is resumed.
    """
    module = client.module(context)
    if client.loss is default_loss and Chain.of(module, client.loss):
        return ""
    settings = replace(ClientSettings.of(context.run_config), num_steps=2, augmentation="")
    try:
        examples = client.data(context)[0]
        batches = list(batches_of(module, examples, settings, np.random.default_rng(0)))
    except Exception as error:
        return f"the data of node {context.node_id} raised {type(error).__name__}"
    return what_differs(module, client.loss, batches)


def clients_at_once(module: nn.Module) -> int:
    """How many clients to train together; 0 where they are faster one by one."""
    first = next(module.parameters())
    if first.device.type != "cpu":
        return MOST
    if any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules()):
        return 0
    size = _CACHE // sum(p.nbytes for p in module.parameters())
    return min(size, MOST) if size > 1 else 0
