"""Bids made of the ends of what their fields can say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.ids import uuid7
from marketplace.orders.services.bids import BidTerms, MarketClosed, place_bid
from tests.cast import Party


def test_the_first_moment_of_all_is_a_closed_market(acme: Party, grade: Any, now: datetime) -> None:
    terms = BidTerms("tiny-chat", "old", [(1, 1)], period_start=datetime(1, 1, 1, tzinfo=UTC))
    with pytest.raises(MarketClosed):
        place_bid(organization_id=acme.id, terms=terms, operation_id=uuid7(), now=now, actor=SYSTEM)
