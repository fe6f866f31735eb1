"""Gateway, agent and engine compared: who is flagged, what is withheld, how a dispute ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connections

from marketplace.errors import DomainError, InvalidInput, NotFound
from marketplace.ids import uuid7
from metering.disputing import RULED_WITHIN
from metering.models import (
    Discrepancy,
    DisputedUsage,
    MeterFinding,
    Reconciliation,
    UsageBatch,
    UsageEvent,
    UsageRollup,
)
from metering.reconciling import reconcile_host, reconciliation_ppm
from metering.services import (
    accept_batch,
    accept_discrepancy,
    amend_event,
    backfill_event,
    close_overdue_discrepancies,
    ingest_batches,
    record_register_read,
    resolve_discrepancy,
    void_event,
)
from metering.usage import Flag
from metering.usage import UsageEvent as WireEvent
from metering.witnesses import Cell, Counted, Seen, Withheld, lower_by_register
from pricing.services import publish_rate
from pricing.units import Bucket
from tests.metering.meters import Meters, digest_of, make_host, make_meters

HOUR = timedelta(hours=1)
PERIOD = timedelta(minutes=5)
# Of the cast's grade: weight 4 x kappa 0.25 for output, 1 x 0.25 for input.
PPM_OUT, PPM_IN = 1_000_000, 250_000


class Story:
    """What gateway and agent report of the same requests."""

    def __init__(self, meters: Meters) -> None:
        self.meters = meters
        self.next_sequence = 1
        self.last_digest = "0" * 64

    def request(
        self,
        gateway: int | None,
        agent: int | None,
        *,
        meters: Meters | None = None,
        start: datetime | None = None,
        gateway_flags: tuple[Flag, ...] = (),
        agent_flags: tuple[Flag, ...] = (),
        skip: bool = False,
    ) -> UUID:
        """One request's output as each has it; None: it does not report the request. `skip` loses a number before."""
        meters = meters or self.meters
        at = start or meters.now
        request_id = uuid7(at)
        common = {"request_id": request_id, "period_start": at, "occurred_at": at + timedelta(seconds=1)}
        if gateway is not None:
            meters.report(
                [meters.event(buckets={Bucket.OUTPUT: gateway}, flags=gateway_flags, id=uuid7(at), **common)]
            )
        if agent is not None:
            self.next_sequence += 1 if skip else 0
            event = meters.event(
                buckets={Bucket.OUTPUT: agent},
                flags=agent_flags,
                id=uuid7(at + timedelta(seconds=2)),
                **common,
            )
            self.send(event, at + timedelta(seconds=3))
        ingest_batches(now=self.meters.now + 2 * HOUR)
        return request_id

    def send(self, event: WireEvent, at: datetime) -> None:
        body = self.meters.sent([event], first=self.next_sequence, previous_digest=self.last_digest)
        self.last_digest = digest_of(body, self.last_digest)
        self.next_sequence += 1
        accept_batch(source=self.meters.agent, body=body, now=at)

    def later(self) -> None:
        """Both report something of the next hour: the agent's record of this one is whole."""
        self.request(7, 7, start=self.meters.now + HOUR)

    def reconcile(self, *offerings: UUID, now: datetime | None = None) -> Discrepancy | None:
        meters = self.meters
        return reconcile_host(
            host_id=meters.host_id,
            offering_ids=[meters.offering_id, *offerings],
            settlement_start=meters.now,
            settlement_end=meters.now + HOUR,
            now=now or meters.now + HOUR + timedelta(minutes=2),
        )


@pytest.fixture
def story(meters: Meters) -> Story:
    return Story(meters)


def outcome() -> str:
    return Reconciliation.objects.get().outcome


def withheld() -> list[int]:
    return list(
        DisputedUsage.objects.order_by("-withheld_numerator").values_list("withheld_numerator", flat=True)
    )


def test_meters_that_agree_are_reconciled_and_nothing_is_open(story: Story) -> None:
    story.request(1_000, 1_000)
    story.later()
    assert story.reconcile() is None
    assert outcome() == "agreed"
    row = Reconciliation.objects.get()
    assert (row.gateway_numerator, row.agent_numerator) == (1_000 * PPM_OUT, 1_000 * PPM_OUT)
    assert not MeterFinding.objects.exists()


def test_where_the_agent_counted_less_the_difference_is_withheld(story: Story) -> None:
    other = story.meters.other_contract()
    story.request(1_000, 900)
    story.request(500, 500, meters=other)
    story.later()
    found = story.reconcile(other.offering_id)
    assert found is not None
    assert found.evidence["disputed"] == ["output_tokens"]
    assert found.evidence["gateway"] == {"input_tokens": 0, "output_tokens": 1_500}
    assert found.evidence["agent"] == {"input_tokens": 0, "output_tokens": 1_400}
    row = DisputedUsage.objects.get()
    assert (row.contract_id, row.gateway_numerator, row.lower_numerator, row.withheld_numerator) == (
        story.meters.contract_id, 1_000 * PPM_OUT, 900 * PPM_OUT, 100 * PPM_OUT,
    )  # fmt: skip
    assert outcome() == "disputed"


def test_where_the_gateway_counted_less_there_is_a_dispute_and_nothing_to_withhold(story: Story) -> None:
    for _ in range(20):
        story.request(1_000, 1_050)
    story.later()
    found = story.reconcile()
    assert found is not None
    assert found.evidence["agent"]["output_tokens"] == 21_000
    assert withheld() == []


def test_a_request_that_a_whole_record_does_not_hold_is_a_lower_count(story: Story) -> None:
    story.request(1_000, 1_000)
    story.request(200, None)
    story.later()
    found = story.reconcile()
    assert found is not None
    assert found.evidence["agent_is_complete"] is True
    assert withheld() == [200 * PPM_OUT]


def test_what_the_agent_has_not_sent_yet_is_missing_and_not_lower(story: Story) -> None:
    story.request(1_000, 950)
    story.request(200, None)
    found = story.reconcile()  # Nothing of a later period has come: the record may go on.
    assert found is not None
    assert (found.evidence["agent_is_complete"], found.evidence["agent_missing_events"]) == (False, 1)
    assert withheld() == [50 * PPM_OUT]


def test_a_gap_in_the_numbers_makes_missing_requests_estimates(story: Story) -> None:
    story.request(1_000, 1_000)
    story.request(200, None)
    story.request(7, 7, skip=True)
    story.later()
    found = story.reconcile()
    assert found is not None
    assert found.evidence["agent_is_complete"] is False
    assert withheld() == []
    assert MeterFinding.objects.get().evidence == {"missing": [[2, 2]], "gaps": 1}


def test_a_period_without_agents_data_is_estimated_from_the_gateway(story: Story) -> None:
    story.request(1_000, None)
    story.later()
    assert story.reconcile() is None
    assert outcome() == "estimated"
    finding = MeterFinding.objects.get()
    assert (finding.kind, finding.evidence["estimated_from"]) == ("agent_missing", "gateway")
    assert withheld() == []


def test_late_agents_usage_ends_the_dispute_by_itself_and_a_new_difference_opens_it_again(
    story: Story,
) -> None:
    story.request(1_000, 1_000)
    lost = story.request(200, None)
    story.later()
    assert story.reconcile() is not None
    now = story.meters.now
    event = story.meters.event(
        request_id=lost, id=uuid7(now), buckets={Bucket.OUTPUT: 200}, occurred_at=now + timedelta(seconds=1)
    )
    story.send(event, now + HOUR)
    ingest_batches(now=now + 2 * HOUR)
    assert story.reconcile() is None
    found = Discrepancy.objects.get()
    assert (found.status, found.ruling, withheld()) == ("resolved", "agreed", [0])
    assert outcome() == "agreed"
    story.request(300, 100)
    again = story.reconcile()
    assert again is not None
    assert (again.pk, again.status, withheld()) == (found.pk, "open", [200 * PPM_OUT])


@pytest.mark.parametrize("flag", [Flag.ESTIMATED, Flag.UNPROVABLE])
def test_what_the_agent_only_estimated_is_held_against_nobody(story: Story, flag: Flag) -> None:
    story.request(1_000, 1_000)
    story.request(300, 120, agent_flags=(flag,))
    story.later()
    assert story.reconcile() is None
    assert outcome() == "estimated"


def test_a_few_estimates_do_not_make_a_period_one(story: Story) -> None:
    story.request(10_000, 10_000)
    story.request(40, 1, agent_flags=(Flag.ESTIMATED,))
    story.later()
    assert story.reconcile() is None
    assert outcome() == "agreed"


def test_estimating_everything_is_no_agreement(story: Story) -> None:
    for _ in range(3):
        story.request(1_000, 1, agent_flags=(Flag.ESTIMATED,))
    story.later()
    assert story.reconcile() is None
    assert (outcome(), withheld()) == ("estimated", [])


@pytest.mark.parametrize(
    "where", ["reported twice", "nobody's request", "nobody's request of another contract"]
)
def test_no_request_makes_up_for_what_another_lacks(story: Story, where: str) -> None:
    """The sums of both meters are the same, and the agent saw one token of the second request's thousand."""
    meters = story.meters
    other = meters.other_contract()
    first = story.request(1_000, 1_000)
    story.request(1_000, 1)
    of = other if where.endswith("contract") else meters
    more = of.event(
        id=uuid7(meters.now),
        request_id=first if where == "reported twice" else uuid7(meters.now),
        buckets={Bucket.OUTPUT: 999},
        occurred_at=meters.now + timedelta(seconds=1),
    )
    story.send(more, meters.now + timedelta(seconds=5))
    story.later()
    found = story.reconcile(other.offering_id)
    assert found is not None
    assert found.evidence["agent_of_carried_requests"] == {"input_tokens": 0, "output_tokens": 1_001}
    assert (outcome(), withheld()) == ("disputed", [999 * PPM_OUT])


def test_a_request_that_is_reported_twice_counts_once(story: Story) -> None:
    first = story.request(1_000, 1_000)
    again = story.meters.event(
        id=uuid7(story.meters.now),
        request_id=first,
        buckets={Bucket.OUTPUT: 1_000},
        occurred_at=story.meters.now + timedelta(seconds=1),
    )
    story.send(again, story.meters.now + timedelta(seconds=5))
    story.later()
    assert story.reconcile() is None
    assert outcome() == "agreed"


def test_sums_that_no_column_holds_are_compared_all_the_same(story: Story) -> None:
    """Two rates of 5,000 requests with a thousand million tokens each: 10^19 millionths."""
    meters = story.meters
    rate = publish_rate(
        grade_id=meters.grade_id, kind="list", micros_per_mtok=1, source_id=uuid7(), now=meters.now
    )
    story.request(1_000, 900)
    for rate_id in (meters.rate_id, rate.id):
        events = [
            meters.event(
                id=uuid7(meters.now),
                request_id=uuid7(meters.now),
                rate_id=rate_id,
                buckets={Bucket.OUTPUT: 10**9},
            )
            for _ in range(5_000)
        ]
        body = meters.sent(events, first=story.next_sequence, previous_digest=story.last_digest)
        story.last_digest = digest_of(body, story.last_digest)
        story.next_sequence += len(events)
        accept_batch(source=meters.agent, body=body, now=meters.now)
        ingest_batches(now=meters.now + timedelta(minutes=9))
    story.later()
    assert story.reconcile() is not None
    assert withheld() == [100 * PPM_OUT]
    row = Reconciliation.objects.get()
    assert (row.gateway_numerator, row.agent_numerator) == (1_000 * PPM_OUT, 2**63 - 1)


def test_what_another_host_did_for_the_same_contract_is_no_matter_of_this_one(story: Story) -> None:
    meters = story.meters
    other = replace(make_host(meters), contract_id=meters.contract_id)
    other.add_point()
    story.request(1_000, 1_000)
    event = other.event(buckets={Bucket.OUTPUT: 900}, flags=(Flag.ESTIMATED,))
    other.report([event])
    body = other.sent([other.event(buckets={Bucket.OUTPUT: 1}, request_id=event.request_id)])
    accept_batch(source=other.agent, body=body, now=meters.now + timedelta(seconds=5))
    story.later()
    assert UsageRollup.objects.filter(offering_id=other.offering_id).count() == 2
    assert story.reconcile() is None
    assert outcome() == "agreed"


def test_what_the_operator_corrected_is_not_compared_any_more(story: Story) -> None:
    """Amended up, voided, backfilled: each far beyond tolerance, and the host has done nothing wrong."""
    meters = story.meters
    amended, voided = story.request(1_000, 1_000), story.request(500, 500)
    story.request(300, 300)
    story.later()
    read(story, meters.now - timedelta(seconds=5), output=0)
    read(story, meters.now + HOUR, output=1_800)
    assert story.reconcile() is None
    events = {event.request_id: event for event in UsageEvent.objects.filter(source=meters.gateway)}
    why: Any = {"reason": "the engine said otherwise", "actor": "operator", "now": meters.now + HOUR}
    source_id = meters.gateway.id
    buckets: dict[Bucket, int | None] = {Bucket.OUTPUT: 1_400}
    amend_event(source_id=source_id, event_id=events[amended].id, buckets=buckets, **why)
    void_event(source_id=source_id, event_id=events[voided].id, **why)
    backfill_event(
        contract_id=meters.contract_id,
        offering_id=meters.offering_id,
        rate_id=meters.rate_id,
        api_key_id=None,
        period_start=meters.now,
        occurred_at=meters.now,
        buckets={Bucket.OUTPUT: 900},
        request_id=uuid7(meters.now),
        **why,
    )
    assert story.reconcile(now=meters.now + 2 * HOUR) is None
    assert outcome() == "agreed"
    assert withheld() == []
    # The rest is compared as before.
    story.request(400, 300)
    found = story.reconcile(now=meters.now + 2 * HOUR)
    assert found is not None
    assert withheld() == [100 * PPM_OUT]


def test_what_is_on_its_way_later_does_not_change_what_was_found(story: Story) -> None:
    """The same usage compared again says the same, whatever waits in the inbox then."""
    story.request(1_000, None)
    story.request(500, 500)
    story.later()
    first = story.reconcile()
    assert first is not None
    assert withheld() == [1_000 * PPM_OUT]
    later = story.meters.now + 5 * HOUR
    story.send(story.meters.event(period_start=later, occurred_at=later, id=uuid7(later)), later)
    assert UsageBatch.objects.filter(status="pending").exists()
    story.reconcile(now=later)
    assert withheld() == [1_000 * PPM_OUT]


def read(story: Story, at: datetime, *, output: int, boot: str = "b1", bench: int = 0) -> None:
    record_register_read(
        host_id=story.meters.host_id,
        boot_id=boot,
        read_at=at,
        input_tokens=0,
        cache_read_tokens=None,
        output_tokens=output,
        energy_millijoules=None,
        bench_output_tokens=bench,
    )


def test_an_engine_that_counted_less_than_was_carried_withholds_by_share(story: Story) -> None:
    other = story.meters.other_contract()
    story.request(600, 600)
    story.request(400, 400, meters=other)
    read(story, story.meters.now - timedelta(seconds=5), output=50)
    read(story, story.meters.now + HOUR, output=950)
    found = story.reconcile(other.offering_id)
    assert found is not None
    assert found.evidence["engine"] == {"input_tokens": 0, "output_tokens": 900}
    assert withheld() == [60 * PPM_OUT, 40 * PPM_OUT]
    assert MeterFinding.objects.get().kind == "register_less"


@pytest.mark.parametrize(
    ("output", "bench", "boot", "finding"),
    [
        (1_000, 0, "b1", None),
        (1_004, 0, "b1", None),
        (1_200, 0, "b1", "register_more"),
        (1_200, 200, "b1", None),
        (300, 0, "b2", None),
    ],
    ids=["same", "a little more", "others' work", "own benches", "restarted: nobody knows"],
)
def test_an_engine_that_counted_enough_convicts_nobody(
    story: Story, output: int, bench: int, boot: str, finding: str | None
) -> None:
    story.request(1_000, 1_000)
    read(story, story.meters.now - timedelta(seconds=5), output=0)
    read(story, story.meters.now + HOUR, output=output, boot=boot, bench=bench)
    assert story.reconcile() is None
    assert [one.kind for one in MeterFinding.objects.all()] == ([finding] if finding else [])


def test_a_request_that_ran_past_the_last_read_is_not_held_against_the_engine(story: Story) -> None:
    meters, last = story.meters, story.meters.now + HOUR - PERIOD
    story.request(1_000, 1_000)
    at = last + timedelta(minutes=4, seconds=50)
    event = meters.event(
        id=uuid7(at), buckets={Bucket.OUTPUT: 500}, period_start=last, occurred_at=at, duration_ms=60_000
    )
    meters.report([event])
    story.send(event, at + timedelta(seconds=61))
    ingest_batches(now=meters.now + 2 * HOUR)
    read(story, meters.now, output=0)
    read(story, meters.now + HOUR + timedelta(seconds=5), output=1_250)
    assert story.reconcile() is None


def test_the_lower_of_agent_and_engine_settles() -> None:
    cells = [Cell(UUID(int=n), UUID(int=9), UUID(int=9), datetime(2026, 1, 1, tzinfo=UTC)) for n in (1, 2)]
    gateway = Seen(0, 1_000, 0, 1_000, 2, {cells[0]: 600, cells[1]: 400})
    by_agent = {cells[0]: Withheld(600, 580)}
    found = lower_by_register(gateway, Counted(0, 1_000), Counted(None, 900), by_agent)
    assert sum(one.gateway - one.lower for one in found.values()) == 100
    assert found[cells[0]].lower <= 580
    # The register saw more than the agent: what the agent says stands.
    assert lower_by_register(gateway, Counted(0, 1_000), Counted(None, 990), by_agent) == by_agent


# How a dispute ends --------------------------------------------------------------------------------------------


@pytest.fixture
def dispute(story: Story) -> Discrepancy:
    story.request(1_000, 900)
    story.later()
    found = story.reconcile()
    assert found is not None
    return found


def test_accepting_leaves_the_lower_count(dispute: Discrepancy, now: datetime) -> None:
    closed = accept_discrepancy(discrepancy_id=dispute.pk, reason="Our clock.", closed_by="hyperion", now=now)
    assert (closed.status, closed.ruling, closed.reason) == ("accepted", "lower", "Our clock.")
    assert withheld() == [100 * PPM_OUT]


@pytest.mark.parametrize(("ruling", "left"), [("lower", 100), ("higher", 0), ("numbers", 30)])
def test_the_operator_rules(dispute: Discrepancy, now: datetime, ruling: str, left: int) -> None:
    row = DisputedUsage.objects.get()
    numerators = {row.pk: 970 * PPM_OUT} if ruling == "numbers" else None
    closed = resolve_discrepancy(
        discrepancy_id=dispute.pk, ruling=ruling, reason="Seen.", closed_by="operator", numerators=numerators, now=now
    )  # fmt: skip
    assert (closed.status, closed.ruling, closed.closed_at) == ("resolved", ruling, now)
    assert withheld() == [left * PPM_OUT]
    assert outcome() == ("agreed" if ruling == "higher" else "disputed")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ruling": "mine"}, "ruling"),
        ({"reason": " "}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"reason": "a\0b"}, "reason"),
        ({"ruling": "numbers"}, "numerators"),
        ({"ruling": "lower", "numerators": {UUID(int=1): 950 * PPM_OUT}}, "numerators"),
        ({"ruling": "numbers", "numerators": {UUID(int=1): 950 * PPM_OUT}}, "numerators"),
        ({"ruling": "numbers", "numerators": {None: 1_001 * PPM_OUT}}, "numerators"),
        ({"ruling": "numbers", "numerators": {None: 899 * PPM_OUT}}, "numerators"),
    ],
)
def test_a_ruling_that_makes_no_sense_names_the_field_and_changes_nothing(
    dispute: Discrepancy, now: datetime, change: dict[str, object], field: str
) -> None:
    ruling: dict[str, object] = {"ruling": "lower", "reason": "Seen.", **change}
    if isinstance(numerators := ruling.get("numerators"), dict) and None in numerators:
        ruling["numerators"] = {DisputedUsage.objects.get().pk: numerators[None]}
    with pytest.raises(InvalidInput) as raised:
        resolve_discrepancy(discrepancy_id=dispute.pk, closed_by="operator", now=now, **ruling)  # type: ignore[arg-type]
    assert raised.value.field == field
    dispute.refresh_from_db()
    assert (dispute.status, withheld()) == ("open", [100 * PPM_OUT])


def test_a_ruling_stands(dispute: Discrepancy, story: Story, now: datetime) -> None:
    accept_discrepancy(discrepancy_id=dispute.pk, reason="Yes.", closed_by="hyperion", now=now)
    with pytest.raises(DomainError) as raised:
        resolve_discrepancy(
            discrepancy_id=dispute.pk, ruling="higher", reason="No.", closed_by="operator", now=now
        )
    assert raised.value.code == "discrepancy_closed"
    story.request(400, 100)
    again = story.reconcile()
    assert again is not None
    assert (again.status, withheld()) == ("accepted", [100 * PPM_OUT])
    with pytest.raises(NotFound):
        accept_discrepancy(discrepancy_id=uuid7(), reason="Yes.", closed_by="hyperion", now=now)


def test_without_a_ruling_the_lower_stands_after_ten_days(dispute: Discrepancy) -> None:
    at = dispute.created_at + RULED_WITHIN
    assert close_overdue_discrepancies(now=at - timedelta(seconds=1)) == 0
    assert close_overdue_discrepancies(now=at) == 1
    assert close_overdue_discrepancies(now=at) == 0
    dispute.refresh_from_db()
    assert (dispute.status, dispute.ruling, withheld()) == ("resolved", "lower", [100 * PPM_OUT])


def test_the_published_share_is_by_volume_over_thirty_days(db: None, now: datetime) -> None:
    host, other = uuid7(), uuid7()
    assert reconciliation_ppm([host], now=now) is None
    for of, days, result, numerator in (
        (host, 1, "agreed", 600), (host, 2, "disputed", 300), (host, 29, "estimated", 100),
        (host, 31, "disputed", 9_999), (other, 1, "disputed", 1_000),
    ):  # fmt: skip
        Reconciliation.objects.create(
            host_id=of,
            settlement_start=now - timedelta(days=days),
            outcome=result,
            gateway_numerator=numerator,
            agent_numerator=0,
            usage_digest=1,
            reconciled_at=now,
        )
    assert reconciliation_ppm([host], now=now) == 600_000
    assert reconciliation_ppm([host, other], now=now) == 300_000


def test_reconciling_twice_changes_nothing(dispute: Discrepancy, story: Story) -> None:
    before = list(DisputedUsage.objects.values()), list(Discrepancy.objects.values())
    assert story.reconcile() == dispute
    assert (list(DisputedUsage.objects.values()), list(Discrepancy.objects.values())) == before


def test_two_workers_at_once_open_one_dispute(committed_db: object, now: datetime) -> None:
    """A settler and the task may compare the same host at the same moment."""
    story = Story(make_meters(now))
    story.request(1_000, 900)
    story.later()

    def compare() -> str:
        try:
            found = story.reconcile()
            assert found is not None
            return str(found.pk)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(compare) for _ in range(8)]}
    assert found == {str(Discrepancy.objects.get().pk)}
    assert (Reconciliation.objects.count(), withheld()) == (1, [100 * PPM_OUT])
