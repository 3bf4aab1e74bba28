"""How unlike the clients of a partition are, as numbers and as a picture."""

from pathlib import Path

import numpy as np

from fedexp.datasets.parts import Array, Indices, Parts, classes
from fedexp.extras import need


def label_counts(labels: Array, parts: Parts) -> Indices:
    """Examples of each class at each client, ``[num_clients, num_classes]``."""
    num_classes = int(labels.max()) + 1
    client = np.repeat(np.arange(len(parts)), parts.sizes)
    cells = client * num_classes + classes(labels)[parts.indices]
    return np.bincount(cells, minlength=len(parts) * num_classes).reshape(-1, num_classes)


def heterogeneity(labels: Array, parts: Parts) -> float:
    """Mean total-variation distance of the clients' label distributions to that of all.

    ``(1/M) Σᵢ ½ Σₖ |qᵢₖ - qₖ|``: 0 if all clients look alike; ``1 - 1/K`` for ``K`` equal classes
    of which each client holds one.
    """
    counts = label_counts(labels, parts)
    shares = counts / counts.sum(1, keepdims=True)
    return float(np.abs(shares - counts.sum(0) / counts.sum()).sum(1).mean() / 2)


def plot(labels: Array, parts: Parts, path: str | Path) -> None:
    """Write the picture people know: a bubble for every client and class, area by count.

    Above 60 clients, the classes are stacked in colours instead, one thin bar per client.
    """
    need("matplotlib", "simulation")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = label_counts(labels, parts)
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(counts) <= 60:
        client, label = np.nonzero(counts)
        area = counts[client, label] / counts.max() * 200
        axes.scatter(client, label, s=area, c=label, cmap="tab10")
        axes.set_ylabel("class")
    else:
        tops = np.cumsum(counts, axis=1)
        for k in range(counts.shape[1]):
            bottom = tops[:, k] - counts[:, k]
            axes.fill_between(np.arange(len(counts)), bottom, tops[:, k], step="mid", lw=0)
        axes.set_ylabel("examples, colour by class")
    axes.set_xlabel("client")
    axes.set_title(
        f"{len(parts)} clients, {parts.sizes.min()} to {parts.sizes.max()} examples, "
        f"heterogeneity {heterogeneity(labels, parts):.2f}"
    )
    figure.savefig(path, dpi=120)
