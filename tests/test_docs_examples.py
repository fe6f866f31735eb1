"""Every example of the documents that is written as Python runs, and comes to what stands there."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if ">>> " in page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_come_out_as_written(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False, verbose=False)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_rule_of_the_market_has_an_example() -> None:
    """But for those that are a table or a promise about other parts, each tested where it lives."""
    text = (ROOT / "docs/market.md").read_text()
    without = [section.split("\n")[0] for section in text.split("\n## ")[1:] if ">>> " not in section]
    assert without == [
        "1. Phases",
        "3. Asks",
        "14. What is public",
        "16. What was sold and did not come",
        "What stands against manipulation",
    ]
