import re
from pathlib import Path

import pytest

from fedexp import strategies
from fedexp.strategies import STRATEGIES, FedOpt
from fedexp.strategies.table import strategies_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "strategies.md"


def test_the_document_holds_the_table():
    assert strategies_table() in DOCUMENT.read_text()


def test_every_named_strategy_has_a_row_under_its_lower_case_name():
    named = {
        x.__name__.lower(): x
        for name in strategies.__all__
        if isinstance(x := getattr(strategies, name), type) and issubclass(x, FedOpt)
    }
    del named["fedopt"]
    assert {key: row.strategy for key, row in STRATEGIES.items()} == named


@pytest.mark.parametrize("key", STRATEGIES)
def test_a_row_is_complete_and_its_source_is_in_the_docstring(key):
    row = STRATEGIES[key]
    assert all((row.line, row.formula, row.source, row.use))
    number = re.split(r"arXiv:|doi:|https?://", row.source)[-1]
    assert number != row.source, "a source has a number of arXiv, a DOI or an address"
    assert number in (row.strategy.__doc__ or "")


@pytest.mark.parametrize("key", STRATEGIES)
def test_every_public_class_of_the_document_exists(key):
    assert f"`{key}`" in DOCUMENT.read_text()


@pytest.mark.parametrize("key", STRATEGIES)
def test_a_row_says_whether_all_clients_must_train(key):
    row = STRATEGIES[key]
    assert row.all_clients == row.strategy().optimizer.needs_all_clients
