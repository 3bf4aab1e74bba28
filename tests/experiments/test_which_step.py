"""The tables of ``docs/which-step.md`` are those of the study's file."""

from pathlib import Path

import pytest

from experiments.server_step_tables import TUNING, read
from experiments.which_step import against, document, federations, sensitivity

ROOT = Path(__file__).parents[2]


def row(method, rate, seed, accuracy, own=None):
    scores = {"last-1": 0.0, "ema-0.7": accuracy} | ({"poly-8": own} if own else {})
    return {"method": method, "rate": rate, "seed": seed, "accuracy": scores, "federation": "f"}


ROWS = [
    *(row("FedAvg", rate, seed, rate) for rate in (0.1, 0.2, 0.8) for seed in TUNING),
    *(row("other", rate, seed, 0.0, 0.5) for rate in (0.1, 0.2, 0.8, 3.0) for seed in TUNING),
    *(row("FedAvg", 0.8, seed, 0.8 - seed / 10) for seed in range(3)),
    *(row("other", 0.1, seed, 0.0, 0.9 - seed / 10) for seed in range(3)),
]


def test_the_sensitivity_is_the_area_under_the_curve_of_the_rates_that_all_have():
    assert sensitivity(ROWS, "FedAvg") == pytest.approx(100 * (0.15 + 0.5) / 2)
    assert sensitivity(ROWS, "other") == pytest.approx(50)  # of its own average


def test_a_method_is_ahead_if_it_is_with_every_seed():
    assert against(ROWS, "other") == "ahead"
    assert against(ROWS, "FedAvg", "other") == "behind"
    assert against([*ROWS, row("FedAvg", 0.8, 3, 0.5), row("other", 0.1, 3, 0, 0.4)], "other") == (
        "level"
    )


def test_a_seed_that_the_rival_lacks_does_not_count():
    assert against([*ROWS, row("other", 0.1, 3, 0.0, 0.0)], "other") == "ahead"


def test_a_federation_counts_if_every_method_was_tuned_on_it():
    assert list(federations(ROWS)) == ["f"]
    lacking = [{**row("FedAvg", 0.1, 0, 0.5), "federation": "g"}]
    assert list(federations(ROWS + lacking)) == ["f"]


def test_the_document_has_these_tables():
    page = (ROOT / "docs" / "which-step.md").read_text(encoding="utf-8")
    assert document(read(ROOT / "docs" / "server-steps.jsonl")) in page
