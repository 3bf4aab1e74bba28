"""FedAvg and FedExP on federations that exist, beside guessing the most frequent class.

    python -m experiments.natural_federations --data-dir FOLDER [--only wisdm] [--out FOLDER]

The folder holds one folder per dataset, as `fedexp.datasets.SOURCES` lists them. Prints a Markdown
table; every run leaves its run folder below ``--out``. Short runs: the question is whether each
federation learns, and whether FedExP is ahead of FedAvg at equal rounds and client settings.
"""

import argparse
from logging import ERROR
from pathlib import Path

from fedexp import app
from fedexp.config import Config
from fedexp.logs import level
from fedexp.simulation.run import begin, grid_of, simulate

NATURAL = {"partitioner": "natural", "num_clients": 0}
FEDERATIONS = {
    "heart disease by hospital": {
        **NATURAL,
        "dataset": "heart-disease",
        "model": "linear",
        "fraction_train": 1.0,
        "learning_rate": 0.02,
        "num_server_rounds": 20,
    },
    "WISDM by phone user": {
        **NATURAL,
        "dataset": "wisdm",
        "model": "mlp",
        "fraction_train": 0.3,
        "learning_rate": 0.05,
        "num_server_rounds": 40,
    },
    "MNIST by writer": {
        **NATURAL,
        "dataset": "mnist",
        "model": "cnn",
        "fraction_train": 0.02,
        "learning_rate": 0.05,
        "num_server_rounds": 20,
    },
    "Fashion-MNIST Dirichlet(0.1)": {
        "dataset": "fashion-mnist",
        "partitioner": "dirichlet",
        "alpha": 0.1,
        "num_clients": 100,
        "model": "cnn",
        "fraction_train": 0.1,
        "learning_rate": 0.05,
        "num_server_rounds": 30,
    },
    "Shakespeare by role": {
        **NATURAL,
        "dataset": "shakespeare",
        "model": "char-lstm",
        "fraction_train": 0.01,
        "learning_rate": 1.0,
        "max_grad_norm": 5.0,
        "batch_size": 50,
        "num_server_rounds": 20,
    },
}


def row(name: str, data_dir: str, out: Path) -> str:
    """One federation's line of the table."""
    config = Config(data_dir=data_dir, strategy="fedavg,fedexp", **FEDERATIONS[name])
    counts = app.dataset_of(config).test[1].bincount()
    folder = out / config.dataset
    begin(config, folder)
    with grid_of(config) as grid, level(ERROR):
        averaged, extrapolated = simulate(config, folder, grid).values()
    cells = [
        name,
        f"{len(app.partition_of(config)):,}",
        f"{config.num_server_rounds}",
        f"{counts.max() / counts.sum():.1%}",
        *(f"{s['final-accuracy']:.1%}" for s in (averaged, extrapolated)),
        *(f"{s['best-accuracy']:.1%}" for s in (averaged, extrapolated)),
        f"{extrapolated['mean-server-step-size']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", default="", help="part of a federation's name")
    parser.add_argument("--out", type=Path, default=Path("runs/natural-federations"))
    arguments = parser.parse_args()
    print(
        "| federation | clients | rounds | majority class | FedAvg, final | FedExP, final "
        "| FedAvg, best | FedExP, best | mean server step |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in FEDERATIONS:
        if arguments.only.lower() in name.lower():
            print(row(name, arguments.data_dir, arguments.out), flush=True)


if __name__ == "__main__":
    main()
