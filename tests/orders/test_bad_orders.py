"""Orders that must not be taken, through the door: a clear refusal that names the field, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from rest_framework.test import APIClient

from marketplace.api.errors import PROBLEM_TYPE
from marketplace.orders.models import Bid, BidRevision
from marketplace.orders.services.rounds import advance_auctions
from pricing.models import Grade
from tests.cast import Party, Plant, fund
from tests.orders.world import PERIOD, available, held

NOT_A_RATE = (
    "NaN", "Infinity", "-Infinity", "1e-30", "1e30", "4" * 400, "4" * 5_000, "-1", "-0", "0", "0.5", '"450000"', "null",
    "true", "[]",
)  # fmt: skip
NOT_LOTS = (
    "0", "-1", "1.5", "40.0", "1e3", "1000000001", "NaN", "Infinity", "9" * 400, '"40"', "null",
)  # fmt: skip
FIRST = '{"rate_micros_per_mtok": 450000, "lots": 40}'


@pytest.fixture
def market(acme: Party, plant: Plant, now: datetime) -> Iterator[Party]:
    fund(acme, 100_000, now)
    with time_machine.travel(now, tick=False):
        yield acme


def body(*, steps: str = f"[{FIRST}]", **changes: Any) -> bytes:
    text = json.dumps({"grade": "tiny-chat", "client_id": "bad", "steps": 0, **changes})
    return text.replace('"steps": 0', f'"steps": {steps}').encode()


def send(client: APIClient, raw: bytes, path: str = "bids") -> Any:
    return client.generic(
        "POST",
        f"/api/v1/{path}",
        raw,  # type: ignore[arg-type]  # Bytes go as they are.
        content_type="application/json",
        HTTP_IDEMPOTENCY_KEY=str(uuid4()),
    )


def assert_refused(acme: Party, answer: Any, field: str, statuses: tuple[int, ...] = (422,)) -> None:
    assert answer["Content-Type"] == PROBLEM_TYPE
    assert answer.status_code in statuses, answer.content
    problem = answer.json()
    # What is no JSON at all has no field; the answer says where it stops being JSON.
    assert problem["field"] == field or (answer.status_code == 400 and problem["detail"]), problem
    assert not Bid.objects.exists()
    assert not BidRevision.objects.exists()
    assert (held(acme), available(acme)) == (0, 100_000)


@pytest.mark.parametrize("value", NOT_A_RATE, ids=lambda value: value[:12])
def test_no_rate(market: Party, value: str) -> None:
    steps = f'[{{"rate_micros_per_mtok": {value}, "lots": 40}}]'
    assert_refused(market, send(market.api, body(steps=steps)), "steps.0.rate_micros_per_mtok", (400, 422))


@pytest.mark.parametrize("value", NOT_LOTS, ids=lambda value: value[:12])
def test_no_quantity(market: Party, value: str) -> None:
    steps = f'[{FIRST}, {{"rate_micros_per_mtok": 1, "lots": {value}}}]'
    assert_refused(market, send(market.api, body(steps=steps)), "steps.1.lots", (400, 422))


@pytest.mark.parametrize(
    ("steps", "field"),
    [
        ("[]", "steps"),
        (f"[{', '.join([FIRST] * 11)}]", "steps"),
        (f'[{FIRST}, {{"rate_micros_per_mtok": 450001, "lots": 1}}]', "steps.1.rate_micros_per_mtok"),
        (
            '[{"rate_micros_per_mtok": 1, "lots": 1000000000}, {"rate_micros_per_mtok": 1, "lots": 1}]',
            "steps",
        ),
        ('[{"rate_micros_per_mtok": 5000001, "lots": 1}]', "steps.0.rate_micros_per_mtok"),
    ],
)
def test_steps_that_are_none(market: Party, steps: str, field: str) -> None:
    assert_refused(market, send(market.api, body(steps=steps)), field)


def test_an_unknown_and_a_retired_grade(market: Party, grade: Grade, now: datetime) -> None:
    assert_refused(market, send(market.api, body(grade="no-such-grade")), "grade", (404,))
    # Retired: its version ended, and no other began.
    Grade.objects.filter(pk=grade.pk).update(valid_during=(now, now + PERIOD))
    with time_machine.travel(now + PERIOD, tick=False):
        assert_refused(market, send(market.api, body()), "grade", (404,))
        covered = {"grade": "tiny-chat", "client_id": "c", "rate_micros_per_mtok": 1, "tokens_per_second": 1}
        assert_refused(market, send(market.api, json.dumps(covered).encode(), "bids/cover"), "grade", (404,))


@pytest.mark.parametrize("closed", [False, True])
def test_an_order_after_the_gate(market: Party, now: datetime, closed: bool) -> None:
    advance_auctions(now=now)
    late = now + PERIOD * 0.91
    if closed:
        advance_auctions(now=late)
    with time_machine.travel(late, tick=False):
        answer = send(market.api, body(period_start="2026-03-10T12:05:00Z"))
    assert answer.json()["code"] == "market_closed"
    assert_refused(market, answer, "period_start", (409,))


def test_an_order_above_the_free_balance(market: Party) -> None:
    dear = '[{"rate_micros_per_mtok": 450000, "lots": 400}]'
    answer = send(market.api, body(steps=dear))
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_funds")
    assert answer.json()["field"] == "steps"
    assert not Bid.objects.exists()
    assert (held(market), available(market)) == (0, 100_000)


def test_the_same_client_id_with_other_terms(market: Party) -> None:
    assert send(market.api, body()).status_code == 201
    for changes in ({"min_fill_lots": 1}, {"valid_until": "2026-03-11T12:00:00Z"}, {"all_or_none": True}):
        answer = send(market.api, body(**changes))
        assert (answer.status_code, answer.json()["field"]) == (409, "client_id"), answer.content
    assert Bid.objects.get().revision == 1
    assert held(market) == 18_000
