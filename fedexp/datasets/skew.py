"""How much the clients of a partition differ, as numbers and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedexp.datasets.dealing import Array, Indices, Partition, classes
from fedexp.extras import need


def label_counts(labels: Array, parts: Partition) -> Indices:
    """Count the examples of each class at each client, ``[num_clients, num_classes]``.

    Args:
        labels: class of every example, ``[num_examples]``.
        parts: the examples of every client.

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import by_key, label_counts
        >>> labels, writers = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
        >>> label_counts(labels, by_key(writers, seed=0)).tolist()
        [[2, 1], [0, 1]]
    """
    # One count over the pairs (client, class), numbered row by row.
    num_classes = int(labels.max()) + 1
    client = np.repeat(np.arange(len(parts)), parts.sizes)
    cells = client * num_classes + classes(labels)[parts.indices]
    return np.bincount(cells, minlength=len(parts) * num_classes).reshape(-1, num_classes)


def heterogeneity(labels: Array, parts: Partition) -> float:
    """Mean total-variation distance of the clients' label distributions to that of all.

    ``(1/M) Σᵢ ½ Σₖ |qᵢₖ - qₖ|`` with the frequencies ``qᵢₖ`` of class ``k`` at client ``i``, and
    ``qₖ`` over all clients. It is 0 if all clients have the same distribution, and ``1 - 1/K``
    for ``K`` equal classes of which each client holds one.

    Args:
        labels: class of every example, ``[num_examples]``.
        parts: the examples of every client.

    Returns:
        A number in [0, 1).

    Example:
        >>> import numpy as np
        >>> from fedexp.datasets import by_key, heterogeneity
        >>> labels = np.array([0, 0, 1, 1])
        >>> heterogeneity(labels, by_key(labels, seed=0))  # one client per class: 1 - 1/2
        0.5
    """
    counts = label_counts(labels, parts)
    proportions = counts / counts.sum(1, keepdims=True)
    return float(np.abs(proportions - counts.sum(0) / counts.sum()).sum(1).mean() / 2)


def plot(
    labels: Array,
    parts: Partition,
    path: str | Path,
    *,
    names: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> None:
    """Draw a bubble for every client and class whose area is the number of examples.

    With more than 60 clients the picture has one thin bar per client instead, with the classes
    stacked in colours. The clients are then in the order of their largest class, and of their size.
    Values of a regression have no classes: the picture has the sizes of the clients.

    Args:
        labels: target of every example, ``[num_examples]``.
        parts: the examples of every client.
        path: of the picture; its ending chooses the format.
        names: of the clients, if they have any.
        class_names: of the classes, if they have any.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from fedexp.datasets import dirichlet_equal, plot
        >>> labels = np.repeat([0, 1, 2], 20)
        >>> plot(labels, dirichlet_equal(labels, num_clients=4, alpha=0.3, seed=0), "skew.svg")
        >>> Path("skew.svg").exists()
        True
    """
    need("matplotlib", "simulation")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = label_counts(labels, parts) if labels.dtype.kind != "f" else parts.sizes[:, None]
    figure = Figure(figsize=(9, min(max(4.0, counts.shape[1] / 4), 8)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    has_classes, is_small = counts.shape[1] > 1, len(parts) <= _MOST_BUBBLES
    axes.set_xlabel("client")
    if not is_small:
        _thin_bars(axes, counts, class_names if has_classes else [""])
    elif has_classes:
        _bubbles(axes, counts, class_names)
    else:
        axes.bar(range(len(parts)), parts.sizes)
        axes.set_ylabel("examples")
    if names and is_small:
        rotation = 90 if sum(map(len, names)) > _LINE else 0
        axes.set_xticks(range(len(names)), _short(names), rotation=rotation, parse_math=False)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    apart = f", heterogeneity {heterogeneity(labels, parts):.2f}" if has_classes else ""
    axes.set_title(
        f"{len(parts):,} clients, {parts.sizes.min():,} to {parts.sizes.max():,} examples{apart}"
    )
    figure.savefig(path, dpi=120)


_MOST_BUBBLES = 60  # clients
_MOST_NAMES = 30  # classes
_LINE = 80  # characters that fit side by side


def _bubbles(axes: Any, counts: Indices, class_names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    client, label = np.nonzero(counts)
    area = counts[client, label] / counts.max() * 200
    axes.scatter(client, label, s=area, c=[_colours(counts.shape[1])[k] for k in label])
    axes.set_ylabel("class")
    if class_names and len(class_names) <= _MOST_NAMES:
        axes.set_yticks(range(len(class_names)), _short(class_names), parse_math=False)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _thin_bars(axes: Any, counts: Indices, class_names: Sequence[str]) -> None:
    """Draw a bar per client, without gaps, of its examples by class."""
    num_clients, num_classes = counts.shape
    counts = counts[np.lexsort((-counts.sum(1), counts.argmax(1)))]
    axes.set_xlabel(f"clients, by {'largest class and ' * (num_classes > 1)}size")
    edges = np.arange(num_clients + 1) - 0.5
    tops = np.cumsum(counts, axis=1)
    labels = _short(class_names or list(map(str, range(num_classes))))
    for k, colour in enumerate(_colours(num_classes)):
        bottoms = tops[:, k] - counts[:, k]
        axes.stairs(tops[:, k], edges, baseline=bottoms, fill=True, color=colour, label=labels[k])
    axes.set_ylabel("examples")
    axes.margins(x=0)
    if 1 < num_classes <= _MOST_NAMES:
        legend = axes.legend(
            title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _colours(number: int) -> list[Any]:
    from matplotlib import colormaps

    if number > 20:
        return list(colormaps["turbo"](np.linspace(0, 1, number)))
    return list(colormaps["tab10" if number <= 10 else "tab20"](np.arange(number)))


def _short(names: Sequence[str], most: int = 18) -> list[str]:
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]
