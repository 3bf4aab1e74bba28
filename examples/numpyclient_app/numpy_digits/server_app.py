"""A server of Flower's older API, with a strategy that prints a line for each round."""

from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig

# was: from flwr.server.strategy import FedAvg
from fedexp.strategies.legacy import FedExP as FedAvg
from numpy_digits.task import initial_parameters


class PrintingFedAvg(FedAvg):
    """Prints how far the server stepped, and how well the clients judge the model."""

    def aggregate_fit(self, server_round, results, failures):
        """As usual; remembers the step. FedAvg takes the whole mean, and reports none."""
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        self.step = metrics.get("server-step-size", 1.0)
        return parameters, metrics

    def aggregate_evaluate(self, server_round, results, failures):
        """As usual, and prints."""
        loss, metrics = super().aggregate_evaluate(server_round, results, failures)
        accuracy = metrics["accuracy"]
        print(f"round {server_round}: server step {self.step:.3f}, accuracy {accuracy:.3f}")
        return loss, metrics


def mean_accuracy(metrics):
    """Over the test images of all clients."""
    right = sum(number * one["accuracy"] for number, one in metrics)
    return {"accuracy": right / sum(number for number, _ in metrics)}


def server_fn(context: Context) -> ServerAppComponents:
    """The strategy and the number of rounds."""
    config = context.run_config
    strategy = PrintingFedAvg(
        min_available_clients=config["min-nodes"],
        initial_parameters=ndarrays_to_parameters(initial_parameters()),
        on_fit_config_fn=lambda server_round: {"lr": config["learning-rate"]},
        evaluate_metrics_aggregation_fn=mean_accuracy,
    )
    rounds = ServerConfig(num_rounds=config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=rounds)


app = ServerApp(server_fn=server_fn)
