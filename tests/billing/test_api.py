"""Billing over REST: top-ups happen once, amounts open down to roll-ups, and mallory sees nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from marketplace.billing.models import Charge, TopUp
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.statements import issue_statements
from pricing.models import Grade
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.world import FUNDS, LOT, assert_books_balance, money
from tests.cast import Party, Plant, fund

API = "/api/v1"


def top_up(party: Party, amount: Any, key: str = "one") -> Any:
    return party.api.post(
        f"{API}/top-ups", {"amount_micros": amount}, format="json", HTTP_IDEMPOTENCY_KEY=key
    )


def test_a_top_up_with_the_same_key_moves_money_once(acme: Party) -> None:
    first, again = top_up(acme, 10_000_000), top_up(acme, 10_000_000)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert money(acme, "prepaid") == 10_000_000
    assert top_up(acme, 20_000_000).json()["code"] == "idempotency_key_reused"
    assert acme.api.get(f"{API}/balance").json()["accounts"][0]["available"] == "10.00"
    assert len(acme.api.get(f"{API}/top-ups").json()["items"]) == 1
    assert_books_balance()


@pytest.mark.parametrize(
    "amount", [0, -10_000, 1, 9_999, 10_001, 10**12 + 10_000, 2**63, True, "10000", 1e4, None, [10_000]]
)
def test_a_bad_amount_names_the_field_and_changes_nothing(acme: Party, amount: Any) -> None:
    answer = top_up(acme, amount)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "amount_micros"
    assert TopUp.objects.count() == 0


def test_a_top_up_without_a_key_is_refused(acme: Party) -> None:
    answer = acme.api.post(f"{API}/top-ups", {"amount_micros": 10_000}, format="json")
    assert answer.status_code == 400


def test_an_invoice_opens_down_to_its_rollups(
    acme: Party, hyperion: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, 50 * LOT, now, 30_000)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    issue_statements(month_start=MARCH, now=APRIL_2)
    (summary,) = acme.api.get(f"{API}/invoices").json()["items"]
    invoice = acme.api.get(f"{API}/invoices/{summary['id']}").json()
    assert (invoice["total"], invoice["amount_due"], invoice["status"]) == ("0.03", "0.00", "paid")
    (line,) = invoice["lines"]
    (listed,) = acme.api.get(f"{API}/charges", {"invoice_line_id": line["id"]}).json()["items"]
    charge = acme.api.get(f"{API}/charges/{listed['id']}").json()
    assert sum(int(row["numerator"]) for row in charge["rollups"]) == int(charge["numerator"]) == 50 * LOT
    assert charge["amount_micros"] == line["amount_micros"] == 30_000
    assert acme.api.get(f"{API}/charges/{listed['id']}/events").json() == {"items": [], "next": None}
    (statement,) = hyperion.api.get(f"{API}/statements").json()["items"]
    detail = hyperion.api.get(f"{API}/statements/{statement['id']}").json()
    assert detail["net_micros"] == 28_500
    assert (detail["payout"], "consent" in detail["payout_blocked_reason"]) == (None, True)
    (earning,) = hyperion.api.get(f"{API}/earnings").json()["items"]
    assert earning["net_micros"] == 28_500
    assert hyperion.api.get(f"{API}/payouts").json()["items"] == []

    for path in (
        f"charges/{listed['id']}",
        f"charges/{listed['id']}/events",
        f"invoices/{invoice['id']}",
        f"statements/{statement['id']}",
    ):
        assert mallory.api.get(f"{API}/{path}").status_code == 404
    for path in ("charges", "invoices", "statements", "earnings", "payouts", "top-ups"):
        assert mallory.api.get(f"{API}/{path}").json()["items"] == []
    assert mallory.api.get(f"{API}/charges", {"invoice_line_id": line["id"]}).json()["items"] == []
    assert mallory.api.get(f"{API}/charges", {"contract_id": "nonsense"}).status_code == 422
    assert Charge.objects.count() == 1


@pytest.mark.parametrize(
    "path", ["balance", "top-ups", "charges", "invoices", "statements", "earnings", "payouts"]
)
def test_without_a_key_nothing_is_answered(acme: Party, client: Any, path: str) -> None:
    assert client.get(f"{API}/{path}").status_code == 401
