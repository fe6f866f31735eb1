"""What the operator moves himself at Stripe: written down once, audited, and known to the comparison of balances."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import call_command
from django.db import DatabaseError, transaction

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from marketplace.billing.operator_models import OperatorPosting
from marketplace.billing.services.operator_postings import post_operator_movement
from marketplace.billing.services.posting import fees_account
from marketplace.billing.services.processor_reconciling import compare_balances
from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.selectors import balance_of
from marketplace.ledger.services import InsufficientFunds, NewTransfer, account_id, post_transfers
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        made = make_stripe_market(sim, now)
        made.save_card("pm_card_bypassPending")
        made.top_up(100)
        ids: dict[str, Any] = {"currency": "USD", "now": now}
        fee = NewTransfer(
            id=uuid7(),
            debit_id=account_id(organization_id=made.acme.id, kind=AccountKind.PREPAID, **ids),
            credit_id=account_id(organization_id=made.operator.id, kind=AccountKind.FEES, **ids),
            amount_micros=20 * UNIT,
            code="usage",
        )
        post_transfers([fee], now=now)
        yield made


def post(market: StripeMarket, kind: str, units: int, **more: Any) -> OperatorPosting:
    given: dict[str, Any] = {"reason": "by hand", "operation_id": uuid7(), "now": market.now, "actor": SYSTEM}
    return post_operator_movement(kind=kind, amount_micros=units * UNIT, **(given | more))


def at_processor(market: StripeMarket) -> int:
    return market.balance(market.operator, AccountKind.PROCESSOR).posted_micros


def test_after_the_operators_own_movements_the_balances_agree_again(market: StripeMarket) -> None:
    world = market.sim.world
    world.move_platform(-15 * 100, "payout")
    world.move_platform(40 * 100, "topup")
    billed = world.move_platform(-2 * 100, "stripe_fee")
    report = compare_balances(now=market.now)
    assert report.difference_micros == 23 * UNIT
    assert report.details["unknown_movements"] == [
        f"stripe_fee {billed['id']} {-2 * UNIT}",
        f"topup tu_platform {40 * UNIT}",
        f"payout po_platform {-15 * UNIT}",
    ]
    post(market, "withdrawal", 15, account_kind="fees", reference="po_platform")
    post(market, "capital", 40, reference="tu_platform")
    post(market, "processor_fee", 2, reference=billed["id"])
    report = compare_balances(now=market.now)
    assert (report.difference_micros, report.details["unknown_movements"]) == (0, [])
    assert market.balance(market.operator, AccountKind.FEES).posted_micros == 5 * UNIT
    market.assert_books_balance()


def test_no_more_is_taken_out_than_an_account_has(market: StripeMarket) -> None:
    before = at_processor(market)
    with pytest.raises(InsufficientFunds) as refused:
        post(market, "withdrawal", 21, account_kind="fees")
    assert refused.value.field == "amount_micros"
    with pytest.raises(InsufficientFunds):
        post(market, "withdrawal", 1, account_kind="tax")
    post(market, "withdrawal", 20, account_kind="fees")
    assert at_processor(market) == before - 20 * UNIT


def test_fees_are_taken_out_of_all_the_accounts_that_settlements_put_them_on(market: StripeMarket) -> None:
    acme = account_id(
        organization_id=market.acme.id, kind=AccountKind.PREPAID, currency="USD", now=market.now
    )
    shards = [
        fees_account(UUID(int=number), operator_id=market.operator.id, currency="USD", now=market.now)
        for number in range(3)
    ]
    earned = [
        NewTransfer(id=uuid7(), debit_id=acme, credit_id=shard, amount_micros=7 * UNIT, code="usage")
        for shard in shards
    ]
    post_transfers(earned, now=market.now)
    before, key = at_processor(market), uuid7()
    with pytest.raises(InsufficientFunds) as refused:
        post(market, "withdrawal", 42, account_kind="fees")
    assert refused.value.field == "amount_micros"
    for _ in range(2):
        post(market, "withdrawal", 40, account_kind="fees", operation_id=key, reference="po_1")
    assert at_processor(market) == before - 40 * UNIT
    assert market.balance(market.operator, AccountKind.FEES).posted_micros == 1 * UNIT
    kept = LedgerAccount.objects.filter(organization_id=market.operator.id, kind=AccountKind.FEES)
    assert sorted(balance_of(account).posted_micros for account in kept) == [0, 0, 0, 1 * UNIT]
    market.assert_books_balance()


def test_the_same_operation_or_the_same_movement_is_posted_once(market: StripeMarket) -> None:
    before, key = at_processor(market), uuid7()
    first = post(market, "capital", 5, operation_id=key, reference="tu_1")
    assert post(market, "capital", 5, operation_id=key, reference="tu_1").pk == first.pk
    with pytest.raises(Conflict):
        post(market, "capital", 6, operation_id=key, reference="tu_1")
    with pytest.raises(Conflict) as refused:
        post(market, "capital", 5, reference="tu_1")
    assert refused.value.field == "reference"
    assert at_processor(market) == before + 5 * UNIT
    assert AuditEntry.objects.filter(action="operator_posting.capital").count() == 1
    with pytest.raises(DatabaseError), transaction.atomic():
        OperatorPosting.objects.update(amount_micros=1)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"kind": "gift"}, "kind"),
        ({"kind": "capital", "account_kind": "fees"}, "account_kind"),
        ({"kind": "withdrawal", "account_kind": "prepaid"}, "account_kind"),
        ({"reason": " "}, "reason"),
        ({"reference": "x" * 101}, "reference"),
        ({"amount_micros": 5}, "amount_micros"),
        ({"amount_micros": -10_000}, "amount_micros"),
    ],
)
def test_nonsense_is_refused_and_named(market: StripeMarket, more: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"kind": "capital", "amount_micros": UNIT, "reason": "by hand"}
    given |= {"operation_id": uuid7(), "now": market.now, "actor": SYSTEM}
    with pytest.raises(InvalidInput) as refused:
        post_operator_movement(**(given | more))
    assert refused.value.field == field
    assert not OperatorPosting.objects.exists()


def test_over_rest_only_the_operator_posts(market: StripeMarket) -> None:
    body = {
        "kind": "withdrawal",
        "account_kind": "fees",
        "amount_micros": 3 * UNIT,
        "reason": "March",
        "reference": "",  # As it is shown where the movement has no name.
    }
    path, key = "/api/v1/operator-postings", str(uuid4())
    for _ in range(2):
        answer = market.operator.api.post(path, body, format="json", HTTP_IDEMPOTENCY_KEY=key)
        assert (answer.status_code, answer.json()["amount_micros"]) == (201, 3 * UNIT)
    assert [one["kind"] for one in market.operator.api.get(path).json()["items"]] == ["withdrawal"]
    refused = market.acme.api.post(path, body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
    assert refused.status_code == 403
    assert market.balance(market.operator, AccountKind.FEES).posted_micros == 17 * UNIT


def test_the_command_posts_a_movement_once_by_its_reference(market: StripeMarket) -> None:
    before = at_processor(market)
    for _ in range(2):
        out = StringIO()
        call_command(
            "bookoperator", "capital", str(7 * UNIT), "--reference", "tu_9", "--reason", "float", stdout=out
        )
        assert json.loads(out.getvalue())["amount_micros"] == 7 * UNIT
    assert at_processor(market) == before + 7 * UNIT
    with pytest.raises(SystemExit):
        call_command("bookoperator", "withdrawal", str(99 * UNIT), "--reason", "too much", stderr=StringIO())
