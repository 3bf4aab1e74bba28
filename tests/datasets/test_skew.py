import numpy as np
import pytest

from fedexp.datasets import Partition, by_key, heterogeneity, iid, label_counts, plot

LABELS = np.arange(1_000) % 5


def test_one_class_each_is_one_minus_one_over_the_number_of_classes():
    assert heterogeneity(LABELS, by_key(LABELS, seed=0)) == pytest.approx(1 - 1 / 5)


def test_clients_alike_have_no_heterogeneity():
    assert heterogeneity(LABELS, by_key(np.arange(1_000) // 5 % 4, seed=0)) == 0


def test_counts_are_those_of_each_client():
    parts = iid(LABELS, num_clients=7, seed=0)
    slow = [np.bincount(LABELS[part], minlength=5) for part in parts]
    assert np.array_equal(label_counts(LABELS, parts), slow)


@pytest.mark.parametrize("num_clients", [10, 100])
def test_the_picture_is_a_png(tmp_path, num_clients):
    parts: Partition = iid(LABELS, num_clients=num_clients, seed=0)
    plot(LABELS, parts, tmp_path / "parts.png")
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The axes of a picture."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))

    def axes_of(labels, parts, **names):
        plot(labels, parts, tmp_path / "parts.png", **names)
        figures[-1].draw_without_rendering()
        return figures[-1].axes[0]

    return axes_of


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_clients_and_classes_are_called_by_their_names(drawn):
    names, classes = ["north", "east", "west $x$"], ["no", "yes", "perhaps", "?", "5"]
    parts = iid(LABELS, num_clients=3, seed=0)
    axes = drawn(LABELS, parts, names=names, class_names=classes)
    assert ticks(axes.xaxis) == names
    assert ticks(axes.yaxis) == classes
    assert not any(text.get_parse_math() for text in axes.xaxis.get_ticklabels())
    assert len(axes.collections[0].get_offsets()) == np.count_nonzero(label_counts(LABELS, parts))


def test_a_thousand_clients_are_thin_bars_with_a_legend(drawn):
    parts = iid(LABELS, num_clients=1_000, seed=0)
    axes = drawn(LABELS, parts, names=list(map(str, range(1_000))), class_names=list("abcde"))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("abcde")
    assert len(ticks(axes.xaxis)) < 20
    bars = [patch.get_data() for patch in axes.patches]
    assert sum((x.values - x.baseline).sum() for x in bars) == len(LABELS)
    assert axes.get_xlabel() == "clients, by largest class and size"


def test_thin_bars_are_in_the_order_of_class_and_size(drawn):
    keys = np.repeat(np.arange(100), np.arange(1, 101))
    axes = drawn(keys % 2, by_key(keys, seed=0))
    zeros = axes.patches[0].get_data().values
    assert zeros.tolist() == [*range(99, 0, -2), *[0] * 50]
    values = drawn(keys * 1.0, by_key(keys, seed=0)).patches[0].get_data().values
    assert values.tolist() == [*range(100, 0, -1)]


def test_many_classes_have_no_legend_that_hides_the_picture(drawn):
    labels = np.arange(2_000) % 200
    axes = drawn(labels, iid(labels, num_clients=100, seed=0), class_names=list(map(str, labels)))
    assert axes.get_legend() is None
    assert len({patch.get_facecolor() for patch in axes.patches}) > 150


def test_values_have_sizes_to_show(drawn):
    parts = by_key(np.repeat([0, 1, 2], [5, 3, 2]), seed=0)
    axes = drawn(np.linspace(0, 1, 10), parts, names=["a", "b", "c"])
    assert [patch.get_height() for patch in axes.patches] == [5, 3, 2]
    assert ticks(axes.xaxis) == ["a", "b", "c"]
    assert axes.get_legend() is None
