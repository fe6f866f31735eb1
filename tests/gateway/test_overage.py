"""A request that comes to the end of its contract: over HTTP, in front of a real agent and engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from marketplace import clock
from marketplace.contracts.models import Contract, Entitlement, Hold
from marketplace.contracts.services import capture_hold
from marketplace.contracts.spot import set_period_rate
from marketplace.ledger.selectors import check_ledger
from marketplace.periods import delivery_period
from metering.services import gateway_source
from metering.usage import Flag, UsageEvent
from providers.models import Host, HostHour, HostPeriod, Offering
from tests.contracts.world import LOT, OUTPUT_PPM, ask, available, commit
from tests.gateway.test_gateway import CHAT, Rig, events, numerator_of, rig

__all__ = ["rig"]  # A fixture of the neighbour.

LIST_RATE, SPOT_RATE = 600_000, 400_000
# No end of the answer before its limit.
ENDLESS: dict[str, Any] = {"model": "tiny-chat", "messages": CHAT, "logit_bias": {"2": -100}}


def begin(rig: Rig, policy: str, *, left: int, **terms: Any) -> Contract:
    """A contract that has begun, of which so much is left, and a period whose overage rate is published."""
    rig.fund(100_000_000)
    now = clock.now()
    contract = commit(rig.world, now, firm_lots=30, volume_lots=3, overage_policy=policy, **terms)
    clock.advance(contract.starts_at - now + timedelta(seconds=1))
    now = clock.now()
    Host.objects.update(last_heartbeat_at=now + timedelta(hours=1))
    Offering.objects.update(dependable_numerator_per_s=10**12)
    set_period_rate(
        grade_id=rig.world.grade.id,
        period_start=delivery_period(now).start,
        clearing_rate_micros_per_mtok=SPOT_RATE,
        overage_micros_per_mtok=SPOT_RATE,
        now=now,
    )
    if used := 3 * LOT - left:
        hold_id, opened = ask(rig.world, used, now, contract_id=contract.id)
        assert opened.outcome == "ok"
        capture_hold(id=hold_id, numerator=used, event=b"{}\n", source_id=gateway_source(now).id, now=now)
    return contract


def metered() -> list[UsageEvent]:
    """The events of real requests, part by part."""
    return sorted(events_of_requests(), key=lambda event: event.part)


def events_of_requests() -> list[UsageEvent]:
    from metering.models import UsageBatch

    UsageBatch.objects.filter(body=b"{}\n").delete()
    return events()


def within(contract: Contract) -> Entitlement:
    return Entitlement.objects.get(contract=contract)


@pytest.mark.parametrize(("policy", "left", "where"), [
    ("list", 12 * LOT // 10, "as the stream goes"),
    ("spot", 12 * LOT // 10, "as the stream goes"),
    ("spot", LOT // 2, "at admission"),
])  # fmt: skip
def test_a_stream_uses_its_contract_up_and_goes_on_as_part_1(
    rig: Rig, policy: str, left: int, where: str
) -> None:
    contract = begin(rig, policy, left=left)
    before = available(rig.world)
    answer = rig.post("/v1/chat/completions", ENDLESS | {"max_tokens": 1_900})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    ours = usage["tokenyard"]

    first, last = metered()
    assert (first.part, last.part) == (0, 1)
    assert first.request_id == last.request_id == UUID(ours["generation_id"])
    assert (first.attempt, last.attempt) == (0, 0)
    assert (first.offering_id, first.period_start, first.occurred_at, first.finish) == (
        last.offering_id, last.period_start, last.occurred_at, last.finish,
    )  # fmt: skip
    assert Flag.SPLIT in first.flags
    assert Flag.SPLIT in last.flags
    assert (last.bytes_in, last.bytes_out, first.recount_o200k, last.recount_o200k) == (0, 0, None, None)
    # Every token is in one part, and the first part has all that fit.
    outputs = [event.buckets["output"] or 0 for event in (first, last)]  # type: ignore[index]
    assert sum(outputs) == usage["completion_tokens"] == 1_900
    numerators = [numerator_of(event) for event in (first, last)]
    assert sum(numerators) == int(ours["standard_numerator"])
    assert left - OUTPUT_PPM < numerators[0] <= left
    assert within(contract).used_numerator == 3 * LOT - left + numerators[0]
    assert within(contract).held_numerator == 0

    rate = SPOT_RATE if policy == "spot" else LIST_RATE
    parts = Hold.objects.filter(request_id=first.request_id).order_by("part")
    assert [hold.captured_numerator for hold in parts] == numerators
    assert all(hold.captured_numerator <= hold.amount_numerator for hold in parts)
    assert [hold.contract_id == contract.id for hold in parts] == [True, policy == "spot"]
    assert available(rig.world) == before - parts[1].captured_micros
    assert parts[1].captured_micros == -(-numerators[1] * rate // 10**12)

    assert [(part["contract_id"], part["rate_micros_per_mtok"]) for part in ours["parts"]] == [
        (str(contract.id), 500_000), (str(parts[1].contract_id), rate),
    ]  # fmt: skip
    assert Decimal(ours["cost"]) == sum(Decimal(part["cost"]) for part in ours["parts"])
    assert Decimal(ours["parts"][1]["cost"]) == Decimal(numerators[1] * rate) / 10**18
    shown = rig.world.acme.api.get(f"/api/v1/generations/{ours['generation_id']}").json()
    assert (shown["standard_numerator"], shown["cost"]) == (ours["standard_numerator"], ours["cost"])
    assert [part["standard_numerator"] for part in shown["parts"]] == [str(one) for one in numerators]
    assert check_ledger() == []


def test_under_stop_the_stream_is_cut_at_the_volumes_end(rig: Rig) -> None:
    contract = begin(rig, "stop", left=12 * LOT // 10)
    before = available(rig.world)
    answer = rig.post("/v1/chat/completions", ENDLESS | {"max_tokens": 1_900})
    assert answer.json()["choices"][0]["finish_reason"] == "budget"
    [event] = metered()
    assert Flag.CUT_BUDGET in event.flags
    assert Flag.SPLIT not in event.flags
    assert within(contract).used_numerator <= 3 * LOT
    assert available(rig.world) == before
    assert not Hold.objects.filter(part=1).exists()


@pytest.mark.parametrize(("policy", "rate"), [("list", LIST_RATE), ("spot", SPOT_RATE)])
def test_overage_above_the_contracts_highest_rate_is_refused_and_a_stream_cut(
    rig: Rig, policy: str, rate: int
) -> None:
    begin(rig, policy, left=12 * LOT // 10, max_rate_micros_per_mtok=rate - 1)
    cut = rig.post("/v1/chat/completions", ENDLESS | {"max_tokens": 1_900})
    assert cut.json()["choices"][0]["finish_reason"] == "budget"
    assert "parts" not in cut.json()["usage"]["tokenyard"]
    refused = rig.post("/v1/chat/completions", ENDLESS | {"max_tokens": 1_900})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "overage_above_max_rate")
    assert error["param"] == "max_rate_micros_per_mtok"
    assert f"costs {rate} micros" in error["message"]
    assert f"of {rate - 1}." in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 300
    assert not Hold.objects.filter(status="open").exists()


def test_what_the_contracts_host_cannot_spare_is_asked_of_others_whole(rig: Rig) -> None:
    """Nothing of it is unsold, so nothing can go on there; and there is no other host, so it is refused."""
    contract = begin(rig, "spot", left=LOT // 2)
    for rows in (HostHour, HostPeriod):
        for row in rows.objects.all():
            row.sold_ppm = row.sellable_ppm
            row.save(update_fields=["sold_ppm"])
    refused = rig.post("/v1/chat/completions", ENDLESS | {"max_tokens": 1_900})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "capacity_unavailable")
    assert [hold.status for hold in Hold.objects.order_by("id")] == ["captured", "voided"]
    assert within(contract).held_numerator == 0
    # What fits the rest of the volume is still delivered.
    assert rig.post("/v1/chat/completions", ENDLESS | {"max_tokens": 20}).status_code == 200


def test_a_hundred_requests_at_the_volumes_end_never_overshoot_it(rig: Rig) -> None:
    contract = begin(rig, "spot", left=LOT // 3)
    body = ENDLESS | {"max_tokens": 24}

    def one(_: int) -> tuple[str, int]:
        answer = rig.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        ours = answer.json()["usage"]["tokenyard"]
        return ours["generation_id"], int(ours["standard_numerator"])

    with ThreadPoolExecutor(25) as pool:
        answers = dict(pool.map(one, range(100)))
    assert len(answers) == 100
    holds = Hold.objects.filter(request_id__in=list(answers))
    assert not holds.filter(status="open").exists()
    captured = dict.fromkeys(answers, 0)
    for hold in holds:
        captured[str(hold.request_id)] += hold.captured_numerator
        assert hold.captured_numerator <= hold.amount_numerator
    assert captured == answers
    inside = sum(hold.captured_numerator for hold in holds if hold.entitlement_id)
    month = within(contract)
    assert month.held_numerator == 0
    assert month.used_numerator == 3 * LOT - LOT // 3 + inside <= 3 * LOT
    assert sum(numerator_of(event) for event in metered()) == sum(answers.values())
    # Small requests take it to the last token, one after the other.
    while 3 * LOT - within(contract).used_numerator >= OUTPUT_PPM:
        before = within(contract).used_numerator
        one(0)
        assert before < within(contract).used_numerator <= 3 * LOT
    assert check_ledger() == []
