"""A client of Flower's older API: arrays in, arrays out."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import Context

from numpy_digits.task import load_data, test, train


class DigitsClient(NumPyClient):
    """Trains and tests on the images of one partition."""

    def __init__(self, partition_id, num_partitions, steps):
        self.train_data, self.test_data = load_data(partition_id, num_partitions)
        self.steps = steps

    def fit(self, parameters, config):
        """Train, and return the arrays."""
        updated = train(parameters, *self.train_data, self.steps, config["lr"])
        return updated, len(self.train_data[1]), {}

    def evaluate(self, parameters, config):
        """Test, and return the loss and the accuracy."""
        loss, accuracy = test(parameters, *self.test_data)
        return loss, len(self.test_data[1]), {"accuracy": accuracy}


def client_fn(context: Context):
    """The client of the partition that this node holds."""
    node = context.node_config
    steps = context.run_config["local-steps"]
    return DigitsClient(node["partition-id"], node["num-partitions"], steps).to_client()


app = ClientApp(client_fn=client_fn)
