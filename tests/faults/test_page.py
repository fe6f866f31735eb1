"""docs/faults.md names a test for each fault; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    found, source = 0, ""
    for file, name in re.findall(r"`([\w/]+\.py)`|`(\w+_\w+)`", page):
        if file:
            source = (ROOT / "tests" / file).read_text()
        else:
            assert f"def test_{name}(" in source, name
            found += 1
    assert found >= 50


def test_every_fault_has_a_row() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    rows = {
        int(number)
        for row in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)
        for number in row.split(",")
    }
    assert rows == {*range(1, 46), *range(52, 61)}
