"""Overage in the portal: the present rate beside the others, the highest one on quote and contract."""

from __future__ import annotations

from datetime import datetime

import pytest
from django.test import Client
from rest_framework.test import APIClient

from marketplace.contracts.models import Contract, Quote
from marketplace.contracts.spot import set_period_rate
from marketplace.ids import uuid7
from marketplace.periods import delivery_period
from pricing.models import Grade
from tests.cast import Party, Plant
from tests.portal.test_changes import buyer, quote_terms

__all__ = ["buyer"]  # A fixture of the neighbour.


def test_the_highest_rate_is_asked_shown_and_kept(buyer: Client, acme: Party, grade: Grade) -> None:
    answer = buyer.post("/buyer/buy", quote_terms(grade, overage_policy="spot", max_rate="0.55"))
    assert answer.status_code == 302, answer.content
    quote = Quote.objects.get()
    assert (quote.overage_policy, quote.max_rate_micros_per_mtok) == ("spot", 550_000)
    assert "at most 0.55 USD per Mtok" in buyer.get(answer["Location"]).content.decode()
    accepted = buyer.post(answer["Location"], {"operation": str(uuid7())})
    assert accepted.status_code == 302, accepted.content
    contract = Contract.objects.get(kind="committed")
    assert contract.max_rate_micros_per_mtok == 550_000
    shown = buyer.get(f"/buyer/contracts/{contract.id}").content.decode()
    assert "at most 0.55" in shown
    assert "Highest rate bid" not in shown


@pytest.mark.parametrize(
    "terms", [{"overage_policy": "stop", "max_rate": "0.55"}, {"max_rate": "0"}, {"max_rate": "x"}]
)
def test_a_highest_rate_of_nothing_is_refused_at_its_field(
    buyer: Client, acme: Party, grade: Grade, terms: dict[str, str]
) -> None:
    answer = buyer.post("/buyer/buy", quote_terms(grade, **terms))
    assert answer.status_code == 422
    assert "id_max_rate_error" in answer.content.decode()
    assert not Quote.objects.exists()


def test_the_present_overage_rate_is_public(
    buyer: Client, grade: Grade, plant: Plant, clock_at: datetime
) -> None:
    def shown() -> int | None:
        rate: int | None = APIClient().get("/api/v1/market/tiny-chat").json()["overage_rate_micros_per_mtok"]
        return rate

    pages = ("/market", "/market/tiny-chat", "/buyer/buy")
    assert shown() is None
    for path in pages:
        assert "0.4321" not in buyer.get(path).content.decode()
    set_period_rate(
        grade_id=grade.id, period_start=delivery_period(clock_at).start, clearing_rate_micros_per_mtok=None,
        overage_micros_per_mtok=432_100, now=clock_at,
    )  # fmt: skip
    assert shown() == 432_100
    for path in pages:
        page = buyer.get(path).content.decode()
        assert "Overage now" in page
        assert "0.4321" in page
