"""Every fault that the document names has a test, which exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "what-happens-when.md").read_text(encoding="utf-8")
ROWS = [
    line for line in DOCUMENT.splitlines() if re.match(r"\| (?!---|what happens)", line)
]  # without headings


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_the_tests_that_show_it_exist(row):
    named = re.findall(r"`([\w/.]+)::(\w+)`", row)
    assert named
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")
