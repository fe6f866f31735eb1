"""Faults 17 to 20 of docs/faults.md at the doors where money moves: a key is one effect, for ever and for one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from marketplace.api.models import IdempotencyRecord
from marketplace.billing.models import TopUp
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold, Transfer
from marketplace.ledger.selectors import balance, check_ledger
from marketplace.orders.models import Bid
from tests.cast import Party, Plant, fund

BID = {"grade": "tiny-chat", "client_id": "b1", "steps": [{"rate_micros_per_mtok": 250_000, "lots": 4}]}
QUOTE = {"grade": "tiny-chat", "firm_lots": 10, "volume_lots": 100, "months": 1}


def post(party: Party, path: str, body: Any = None, *, key: str = "one") -> Any:
    return party.api.post(f"/api/v1/{path}", body, format="json", HTTP_IDEMPOTENCY_KEY=key)


def left(party: Party) -> int:
    return balance(organization_id=party.id, kind="prepaid", currency="USD").available_micros


@pytest.mark.parametrize("days", [0, 1, 31, 400])
def test_a_key_moves_money_once_however_late_it_comes_again(acme: Party, now: datetime, days: int) -> None:
    with time_machine.travel(now, tick=False) as clock:
        first = post(acme, "top-ups", {"amount_micros": 5_000_000})
        clock.shift(timedelta(days=days))
        again = post(acme, "top-ups", {"amount_micros": 5_000_000})
        other = post(acme, "top-ups", {"amount_micros": 6_000_000})
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 422)
    assert first.content == again.content
    assert (TopUp.objects.count(), Transfer.objects.count(), left(acme)) == (1, 1, 5_000_000)
    assert check_ledger() == []


def test_without_its_stored_answer_a_transfer_of_last_year_is_still_known_to_the_ledger(
    acme: Party, now: datetime
) -> None:
    """Somebody cleared the table of answers; the ledger's ids are derived from the operation and never forgotten."""
    with time_machine.travel(now, tick=False) as clock:
        post(acme, "top-ups", {"amount_micros": 5_000_000})
        kept = IdempotencyRecord.objects.get()
        IdempotencyRecord.objects.all().delete()
        clock.shift(timedelta(days=400))
        IdempotencyRecord.objects.create(
            id=kept.id, organization_id=acme.id, key="one", method_path=kept.method_path,
            body_sha256=kept.body_sha256, created_at=now, locked_until=datetime(2020, 1, 1, tzinfo=UTC),
        )  # fmt: skip
        again = post(acme, "top-ups", {"amount_micros": 5_000_000})
    assert again.status_code == 201
    assert (TopUp.objects.count(), Transfer.objects.count(), left(acme)) == (1, 1, 5_000_000)


def test_another_body_and_another_path_under_a_used_key_change_nothing(
    acme: Party, plant: Plant, now: datetime
) -> None:
    with time_machine.travel(now, tick=False):
        fund(acme, 10_000_000, now)
        first = post(acme, "bids", BID)
        assert first.status_code == 201, first.content
        held = left(acme)
        more = BID | {"client_id": "b2"}
        money = {"amount_micros": 5_000_000}
        for answer in (post(acme, "bids", more), post(acme, "top-ups", money), post(acme, "bids/cover", BID)):
            assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
            assert answer.json()["field"] == "Idempotency-Key"
        assert post(acme, "bids", BID).content == first.content
    assert (Bid.objects.count(), Hold.objects.count(), left(acme)) == (1, 1, held)
    assert check_ledger() == []


def test_anothers_key_is_a_key_of_its_own_also_where_money_moves(
    acme: Party, mallory: Party, plant: Plant, now: datetime
) -> None:
    with time_machine.travel(now, tick=False):
        fund(acme, 10_000_000, now)
        fund(mallory, 10_000_000, now)
        mine, hers = post(acme, "bids", BID), post(mallory, "bids", BID)
        assert (mine.status_code, hers.status_code) == (201, 201)
        assert mine.json()["id"] != hers.json()["id"]
        # What she buys under acme's key comes from her own money, and acme's answer stays acme's.
        quote = post(acme, "quotes", QUOTE, key="two").json()["id"]
        stolen = post(mallory, f"quotes/{quote}/accept", key="three")
        bought = post(acme, f"quotes/{quote}/accept", key="three")
    assert (stolen.status_code, bought.status_code) == (404, 201)
    assert Contract.objects.filter(quote__isnull=False).count() == 1
    assert left(mallory) == 10_000_000 - 1_000
    assert left(acme) == 10_000_000 - 1_000 - 50_000
    assert check_ledger() == []


def test_an_operation_that_is_asked_for_again_is_the_first_one(acme: Party, now: datetime) -> None:
    """Below the keys: the service itself knows its operation."""
    from marketplace.accounts.services import SYSTEM
    from marketplace.billing.services.top_ups import top_up

    operation_id = uuid7()

    def ask(amount_micros: int) -> TopUp:
        return top_up(
            organization_id=acme.id,
            amount_micros=amount_micros,
            operation_id=operation_id,
            now=now,
            actor=SYSTEM,
        )

    first = ask(5_000_000)
    assert ask(5_000_000).id == first.id
    assert (TopUp.objects.count(), left(acme)) == (1, 5_000_000)
