"""A sealed book goes by the rule that it names, whatever rule new books are sealed under."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import pytest

from marketplace.orders.book import SealedBook, sound_book
from pricing.book import FIRST_RULE, RULE_VERSION


def stored(rule: str) -> dict[str, Any]:
    """A book of forty bids for all or none and three asks, in its stored form."""
    chance = random.Random(5)
    return {
        "rule_version": rule,
        "grade_id": str(UUID(int=1)),
        "period_start": "2026-01-01T00:05:00+00:00",
        "cap": 1_000_000,
        "missed": False,
        "bids": [
            {
                "id": str(UUID(int=100 + n)),
                "organization_id": str(UUID(int=200 + n)),
                "placed_at": "2026-01-01T00:00:00+00:00",
                "steps": [[1_000 + chance.randrange(50), 1_000 + chance.randrange(9_000)]],
                "min_fill_lots": 0,
                "all_or_none": True,
            }
            for n in range(40)
        ],
        "asks": [
            {
                "id": str(UUID(int=300 + n)),
                "organization_id": str(UUID(int=400 + n)),
                "offering_id": str(UUID(int=500 + n)),
                "placed_at": "2026-01-01T00:00:00+00:00",
                "rate": 900 + 60 * n,
                "lots": 40_000,
            }
            for n in range(3)
        ],
    }


def test_each_rule_replays_its_own_books() -> None:
    digests = {}
    for rule in (FIRST_RULE, RULE_VERSION):
        book = SealedBook(stored(rule))
        result = book.clear()
        book.confirm(result)
        digests[rule] = (book.digest(), book.result_digest(result))
        assert sound_book(stored(rule), book.digest()) is not None
    # As the first rule gave them before there was a second.
    assert digests[FIRST_RULE] == (
        "2eeeb140f2df7c4c0422adabfd79a2f7e2672ce2409274e8c08d81c1aed47358",
        "abd060dc6a7d19f125358e791feb05c041143bdcd6f91c786d92cf57221d3101",
    )
    assert digests[RULE_VERSION] != digests[FIRST_RULE]


@pytest.mark.parametrize("rule", [FIRST_RULE, RULE_VERSION])
def test_a_book_that_is_given_another_rule_is_not_the_one_that_was_sealed(rule: str) -> None:
    (other,) = {FIRST_RULE, RULE_VERSION} - {rule}
    assert sound_book(stored(other), SealedBook(stored(rule)).digest()) is None
    assert sound_book({**stored(rule), "rule_version": None}, SealedBook(stored(rule)).digest()) is None
