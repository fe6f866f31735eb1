"""Requests on one hot contract: hold and capture as the gateway has them, then the settlement of their hour; in turns
with the ledger's own hold, capture and close on one account, which are as many for each request.

Needs a migrated database (`DATABASE_URL`) that may be written to: what it makes stays there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from marketplace import clock
from marketplace.accounts.services import ensure_operator
from marketplace.billing.models import Charge
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.services import capture_hold, open_hold
from marketplace.ids import uuid7
from marketplace.ledger.services import NewTransfer, account_id, close_hold, post_transfers
from marketplace.ledger.services import open_hold as ledger_open_hold
from marketplace.periods import settlement_period
from metering.services import gateway_source, ingest_batches
from metering.usage import Finish, UsageEvent, encode_event
from pricing.units import Bucket
from providers.models import Host
from tests.cast import make_grade, make_party, make_plant

REQUESTS: Final = 1_000
# Within what the host has unsold at once, all of them together.
TOKENS: Final = 20
TURNS: Final = 4
MOST_P99_MS: Final = 50


def run() -> Iterator[dict[str, Any]]:
    """One dict per benchmark: name, value, unit, floor, ratio."""
    now = clock.now()
    operator = ensure_operator(now=now)
    buyer, seller = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    make_plant(seller, grade, now)
    Host.objects.update(last_heartbeat_at=now + timedelta(hours=1))
    processor = account_id(organization_id=operator.id, kind="processor", currency="USD", now=now)
    prepaid = account_id(organization_id=buyer.id, kind="prepaid", currency="USD", now=now)
    post_transfers([NewTransfer(uuid7(), processor, prepaid, 10**9, "top_up")], now=now)
    source_id = gateway_source(now).id
    taken_ms: list[float] = []
    held_s = ledger_s = 0.0
    for _ in range(TURNS):
        for _ in range(REQUESTS // TURNS):
            asked = time.perf_counter()
            _request(buyer.id, grade.id, source_id, now)
            taken_ms.append((time.perf_counter() - asked) * 1_000)
        held_s = sum(taken_ms) / 1_000
        began = time.perf_counter()
        for _ in range(REQUESTS // TURNS):
            _ledger_alone(prepaid, processor, now)
        ledger_s += time.perf_counter() - began
    hour = settlement_period(now).start
    later = hour + timedelta(hours=1, minutes=2)
    began = time.perf_counter()
    while ingest_batches(now=later):
        pass
    settled = settle_period(settlement_start=hour, now=later)
    settled_s = time.perf_counter() - began
    assert (settled.failed, settled.waiting) == ([], [])
    assert Charge.objects.get().numerator == REQUESTS * TOKENS * 10**6
    yield _result("contract_hold_settle", REQUESTS / (held_s + settled_s), "requests/s", REQUESTS / ledger_s)
    p99_ms = sorted(taken_ms)[REQUESTS * 99 // 100]
    yield _result("contract_hold_capture_p99", p99_ms, "ms", MOST_P99_MS)


def _request(buyer_id: UUID, grade_id: UUID, source_id: UUID, now: datetime) -> None:
    hold_id = uuid7(now)
    opened = open_hold(
        id=hold_id, organization_id=buyer_id, grade_ids=[grade_id], numerators=[2 * TOKENS * 10**6], now=now
    )
    assert opened.outcome == "ok", opened
    assert opened.contract_id is not None
    assert opened.offering_id is not None
    assert opened.rate_id is not None
    assert opened.period_start is not None
    event = UsageEvent(
        id=hold_id, sequence=1, request_id=hold_id, attempt=0, part=0, contract_id=opened.contract_id,
        offering_id=opened.offering_id, grade_id=grade_id, rate_id=opened.rate_id,
        period_start=opened.period_start.astimezone(UTC), occurred_at=now.astimezone(UTC),
        buckets={Bucket.OUTPUT: TOKENS}, finish=Finish.STOP, bytes_in=1, bytes_out=1, duration_ms=5,
    )  # fmt: skip
    captured = capture_hold(
        id=hold_id,
        numerator=TOKENS * 10**6,
        event=encode_event(event) + b"\n",
        source_id=source_id,
        now=now,
    )
    assert captured.outcome == "ok"


def _ledger_alone(account: UUID, other: UUID, now: datetime) -> None:
    hold_id = uuid7(now)
    ledger_open_hold(id=hold_id, account_id=account, amount_micros=9, code="usage", now=now)
    post_transfers([NewTransfer(hold_id, account, other, 5, "usage", hold_id=hold_id)], now=now)
    close_hold(id=hold_id, status="posted", now=now)


def _result(name: str, value: float, unit: str, floor: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2) if unit == "ms" else round(value),
        "unit": unit,
        "floor": round(floor),
        "ratio": round(value / floor, 3),
    }
