"""The rounds of training, and what the server says of them."""

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

# was: from flwr.serverapp.strategy import FedAvg
from fedexp.strategies import FedExP as FedAvg
from torch_digits.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds; every client trains and tests in each."""
    config = context.run_config
    strategy = FedAvg(min_available_nodes=config["min-nodes"])
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
    )
    for number, metrics in result.train_metrics_clientapp.items():
        step = metrics.get("server-step-size", 1.0)  # FedAvg takes the whole mean, and reports none
        accuracy = result.evaluate_metrics_clientapp[number]["eval_acc"]
        print(f"round {number}: server step {step:.3f}, accuracy {accuracy:.3f}")
