"""The picture of a run, looked at through matplotlib's own objects."""

import math
from dataclasses import replace

import numpy as np
import pytest
from folders import unit_of, without_accuracy

pytest.importorskip("matplotlib")
from fedexp.runs import pictures
from fedexp.runs.pictures import curves, save

CONFIG = {"dataset": "digits", "partitioner": "auto", "client-from": "", "alpha": 0.1}
SEEDS = [unit_of("fedavg", x, seed=i) for i, x in enumerate([[0.2, 0.4, 0.6], [0.4, 0.8, 0.7]])]


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def style(line):
    return line.get_color(), line.get_linestyle()


def test_the_title_has_dataset_partition_and_seeds():
    assert curves(SEEDS, CONFIG).get_suptitle() == "digits, dirichlet (α = 0.1), seeds 0, 1"
    three = [replace(SEEDS[0], seed=seed) for seed in (3, 4, 5)]
    own = {"data": "hospitals/*.csv", "partitioner": "auto", "client-from": "file"}
    wanted = "hospitals/*.csv, natural partition, seeds 3 to 5"
    assert curves(three, own).get_suptitle() == wanted
    assert curves(SEEDS[:1]).get_suptitle() == "digits, seed 0"


def test_the_line_is_the_mean_over_seeds_in_a_band_of_one_standard_deviation():
    axes = curves(SEEDS).axes[0]
    values = np.array([[row["mean-test-accuracy"] for row in unit.rows] for unit in SEEDS])
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), values.mean(0))
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices[:, 1]
    mean, std = values.mean(0), values.std(0, ddof=1)
    assert corners.min() == pytest.approx((mean - std).min())
    assert corners.max() == pytest.approx((mean + std).max())


def test_the_last_iterates_of_one_seed_are_dots():
    unit = unit_of(accuracies=[0.1, 0.5], mean_test_accuracy=[0.2, 0.4])
    average, last, _ = curves([unit]).axes[0].get_lines()
    assert (list(average.get_ydata()), average.get_linestyle()) == ([0.2, 0.4], "-")
    assert (list(last.get_ydata()), last.get_linestyle(), last.get_marker()) == (
        [0.1, 0.5],
        "None",
        ".",
    )


@pytest.mark.parametrize("count", [14, 28])
def test_many_strategies_are_told_apart_with_a_legend_outside(count):
    figure = curves([unit_of(f"strategy-{i}") for i in range(count)])
    (legend,) = figure.legends
    styles = {style(handle) for handle in legend.get_lines()}
    assert len(styles) == len(legend.get_texts()) == count
    assert not any(axes.get_legend() for axes in figure.axes)
    figure.draw_without_rendering()
    right = max(axes.get_window_extent().x1 for axes in figure.axes)
    assert legend.get_window_extent().x0 >= right


def test_a_strategy_looks_the_same_in_every_panel():
    units = [unit_of(name) for name in ("a", "b")]
    units += [unit_of("c", learning_rate=0.1, learning_rate_std=0.02)]
    score, step, rate = curves(units).axes
    assert style(score.get_lines()[4]) == style(step.get_lines()[2]) == style(rate.get_lines()[0])


def test_rounds_are_whole_and_the_target_has_its_name():
    score, step = curves([unit_of(accuracies=[0.1, 0.2])]).axes
    for axes in (score, step):
        low, high = axes.get_xlim()
        ticks = [x for x in axes.xaxis.get_major_locator().tick_values(low, high)]
        assert ticks == [round(x) for x in ticks]
    assert [text.get_text() for text in score.texts] == ["target 0.85"]
    assert step.get_yscale() == "log"


def test_the_picture_gains_a_panel_only_where_a_rate_is_tuned():
    plain = unit_of(learning_rate=0.1, learning_rate_std=0.0)
    tuned = unit_of("b", [0.1, 0.2, 0.3], learning_rate=[0.1, None, 0.3], learning_rate_std=0.05)
    assert len(curves([plain]).axes) == 2
    *_, rate = curves([plain, tuned]).axes
    (line,) = rate.get_lines()
    np.testing.assert_allclose(line.get_ydata(), [0.1, np.nan, 0.3])
    corners = np.vstack([path.vertices for path in rate.collections[0].get_paths()])[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((0.05, 0.35))


def test_a_regression_shows_its_loss():
    units = [replace(unit, rows=without_accuracy(unit)) for unit in SEEDS]
    score = curves(units).axes[0]
    assert score.get_ylabel() == "Test loss"
    assert not score.texts
    losses = [[row["mean-test-loss"] for row in unit.rows] for unit in units]
    np.testing.assert_allclose(score.get_lines()[0].get_ydata(), np.mean(losses, 0))


def test_losses_far_apart_are_on_a_logarithmic_axis():
    near, far = (
        replace(unit, rows=[{**row, "mean-test-loss": loss} for row in without_accuracy(unit)])
        for unit, loss in zip(SEEDS, (1.0, 1e6), strict=True)
    )
    assert curves([near]).axes[0].get_yscale() == "linear"
    assert curves([near, replace(far, strategy="diverged")]).axes[0].get_yscale() == "log"


FEW = [
    [],
    [unit_of(accuracies=[])],
    [unit_of(accuracies=[0.5])],
    [unit_of(accuracies=[None, math.nan], server_step_size=[None, 0.0])],
    [replace(unit_of(), rows=[{"round": 1}, {"round": 2, "test-accuracy": "x"}])],
]


@pytest.mark.parametrize(
    ("units", "suffix"),
    [*((units, "svg") for units in FEW), (FEW[0], "png"), (FEW[0], "pdf"), (FEW[3], "pdf")],
)
def test_whatever_rows_there_are_it_can_be_drawn(units, suffix, tmp_path):
    path = save(curves(units), tmp_path / f"curves.{suffix}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_run_gives_the_same_file(suffix, tmp_path):
    one, two = (save(curves(SEEDS, CONFIG), tmp_path / f"{i}.{suffix}") for i in range(2))
    assert one.read_bytes() == two.read_bytes()


def test_text_of_an_svg_stays_text(tmp_path):
    text = save(curves(SEEDS, CONFIG), tmp_path / "curves.svg").read_text()
    assert "digits, dirichlet (α = 0.1), seeds 0, 1" in text


def test_no_two_colours_of_the_page_are_one():
    from fedexp.runs.page import _DARK

    assert len(set(pictures.COLORS)) == len(set(_DARK)) == len(pictures.COLORS)
