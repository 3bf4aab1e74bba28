"""An ordinary Flower ClientApp, with nothing of fedexp in it."""

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from benchmarks.workloads import EXAMPLES, LR, WORKLOADS, Workload

app = ClientApp()


@cache
def _model(workload: Workload) -> nn.Module:
    torch.set_num_threads(1)
    return workload.model()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content.config_records["config"]
    client = int(context.node_config["partition-id"])
    workload = next(w for w in WORKLOADS.values() if w.title == config["workload"])
    model = _model(workload)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    inputs, targets = workload.data()
    rows = workload.rows(client)
    total = 0.0
    for positions in torch.from_numpy(workload.batches(client, int(config["server-round"]))):
        batch = rows[positions]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        loss.backward()
        optimizer.step()
        total += loss.item()
    metrics = {"num-examples": EXAMPLES, "train-loss": total / workload.steps, "client": client}
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)
