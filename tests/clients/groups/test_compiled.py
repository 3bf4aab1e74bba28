"""Clients whose model is compiled by PyTorch, in groups."""

import torch
from torch import nn

from fedexp.clients import default_loss
from fedexp.clients.groups.comparison import what_differs


def test_of_a_compiled_model_the_model_alone_is_compiled():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    tokens.compile(backend=backend)
    batches = [(torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1])) for _ in range(2)]
    assert what_differs(tokens, default_loss, batches) == ""
    assert len(compiled) <= 2  # no operator by itself, as they go through the comparison
    torch._dynamo.reset()
