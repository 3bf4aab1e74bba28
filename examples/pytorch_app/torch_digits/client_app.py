"""What a client does with the global model: train it, or test it."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from torch_digits.task import Net, load_data
from torch_digits.task import test as test_net
from torch_digits.task import train as train_net

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train on the client's own images and return the model."""
    net, (loader, _) = _net_of(msg), _data_of(context)
    loss = train_net(net, loader, context.run_config["local-epochs"], msg.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Test on the client's own images."""
    net, (_, loader) = _net_of(msg), _data_of(context)
    loss, accuracy = test_net(net, loader)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


def _net_of(msg):
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    return net


def _data_of(context):
    node = context.node_config
    return load_data(node["partition-id"], node["num-partitions"])
