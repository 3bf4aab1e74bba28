"""The rounds of training, with a test on the server after each."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

# was: from flwr.serverapp.strategy import FedAvg
from fedexp.strategies import FedExP as FedAvg
from sklearn_iris.task import create_model, get_arrays, load_data, set_arrays

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds; every client trains in each, and the server tests."""
    config = context.run_config
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=config["min-nodes"])
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_arrays(create_model())),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    for number, metrics in result.train_metrics_clientapp.items():
        step = metrics.get("server-step-size", 1.0)  # FedAvg takes the whole mean, and reports none
        accuracy = result.evaluate_metrics_serverapp[number]["accuracy"]
        print(f"round {number}: server step {step:.3f}, accuracy {accuracy:.3f}")


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """How well the global model tells irises that no client has."""
    model = create_model()
    set_arrays(model, arrays.to_numpy_ndarrays())
    _, features, _, labels = load_data()
    return MetricRecord({"accuracy": model.score(features, labels)})
