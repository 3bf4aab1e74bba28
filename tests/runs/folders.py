"""Run folders as a run would leave them, with numbers that are known."""

import csv
import json

import tomli_w

from fedexp.runs.reading import UnitResult


def rows_of(accuracies, **columns):
    """A row a round; a column is a list, or one value for all rounds."""
    rows = []
    for i, accuracy in enumerate(accuracies):
        row = {
            "round": i + 1,
            "failed": False,
            "train-loss": 1.0,
            "test-loss": 2.0 - (accuracy or 0),
        }
        row |= {"test-accuracy": accuracy, "mean-test-accuracy": accuracy}
        row |= {"mean-test-loss": row["test-loss"], "server-step-size": 1.0 + i}
        row |= {"num-clients": 2, "num-failures": 0, "round-seconds": 0.5}
        row |= {k.replace("_", "-"): v[i] if isinstance(v, list) else v for k, v in columns.items()}
        rows.append(row)
    return rows


def unit_of(strategy="fedavg", accuracies=(0.5, 0.9), seed=0, settings=None, **columns):
    about = {"target-accuracy": 0.85, "average": "ema-0.7", "dataset": "digits", "model": "mlp"}
    rows = rows_of(accuracies, **columns)
    return UnitResult(strategy, seed, settings or {}, rows, about=about)


def without_accuracy(unit):
    return [{k: None if "accuracy" in k else v for k, v in row.items()} for row in unit.rows]


def write_run(folder, units, config=None, one_seed=False, summaries=True, tuning=()):
    """Write units in the layout of a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    strategies = ",".join(dict.fromkeys(unit.strategy for unit in units))
    values = {"strategy": strategies, "dataset": "digits", "seed": 0, "target-accuracy": 0.85}
    (folder / "config.toml").write_text(tomli_w.dumps(values | (config or {})))
    for unit in [*units, *tuning]:
        own = folder / "tuning" if unit in tuning else folder
        own /= unit.strategy
        for key, value in unit.settings.items():
            own /= f"{key}={value}"
        own = own if one_seed else own / f"seed-{unit.seed}"
        own.mkdir(parents=True)
        about = {"strategy": unit.strategy, "seed": unit.seed, "settings": dict(unit.settings)}
        about |= {"tuning": unit in tuning, **unit.about}
        (own / "unit.json").write_text(json.dumps(about))
        lines = "".join(json.dumps(row) + "\n" for row in unit.rows)
        (own / "metrics.jsonl").write_text(lines)
        if summaries:
            summary = {"strategy": unit.strategy, "seed": unit.seed, "ended": "finished"}
            summary |= {"problem": None, "missing-nodes": [], **unit.summary}
            (own / "summary.json").write_text(json.dumps(summary))
        if unit.clients:
            with open(own / "clients.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(unit.clients[0]))
                writer.writeheader()
                writer.writerows(unit.clients)
    return folder
