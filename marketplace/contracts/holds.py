"""Delivery holds: the statements that the gateway's pool runs too, and the sweeper of those nobody ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction

from marketplace.contracts.models import Hold
from marketplace.periods import settlement_period
from metering.models import UsageEvent as StoredEvent
from metering.services import gateway_source
from metering.usage import Finish, Flag, UsageEvent, encode_event
from pricing.rating import cap_counts, standard_numerator
from pricing.selectors import standard_ppm_of
from pricing.units import PPM, Bucket

logger = logging.getLogger(__name__)

OPEN_SQL: Final = (
    "SELECT * FROM contracts_open_hold(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
TAKE_REST_SQL: Final = "SELECT contracts_take_rest(%s, %s, %s)"
OPEN_PART_SQL: Final = "SELECT * FROM contracts_open_part(%s, %s, %s, %s, %s, %s, %s, %s)"
EXTEND_SQL: Final = "SELECT contracts_extend_hold(%s, %s, %s)"
CAPTURE_SQL: Final = "SELECT * FROM contracts_capture_hold(%s, %s, %s, %s, %s)"
VOID_SQL: Final = "SELECT contracts_void_hold(%s, %s)"

# An agent's event arrives within seconds of the request's end; the gateway's own capture comes first.
SWEEP_GRACE: Final = timedelta(seconds=2)


class Opened(NamedTuple):
    """The row of contracts_open_hold; what is null depends on `outcome`."""

    outcome: str
    contract_id: UUID | None
    kind: str | None
    grade_id: UUID | None
    offering_id: UUID | None
    host_id: UUID | None
    base_url: str | None
    engine: str | None
    rate_id: UUID | None
    rate_micros_per_mtok: int | None
    period_start: datetime | None
    expires_at: datetime | None
    amount_numerator: int | None
    amount_micros: int | None
    retry_after_ms: int | None
    limit_numerator: int | None
    remaining_numerator: int | None
    reset_ms: int | None
    # `scope/period` of the cap that refused, where the outcome is spend_cap_reached.
    spend_cap: str | None
    # The contract's own, where the outcome is overage_above_max_rate; the overage's is `rate_micros_per_mtok`.
    max_rate_micros_per_mtok: int | None
    # Of a rate of a month's tiers or packages: what is billed in whole. The rate is the highest that a token comes to.
    unit_numerator: int | None


class Captured(NamedTuple):
    """The row of contracts_capture_hold. `outcome`: ok, or captured, voided or missing when nothing was changed."""

    outcome: str
    captured_numerator: int
    captured_micros: int
    capped: bool


def open_arguments(
    *,
    id: UUID,  # noqa: A002
    request_id: UUID,
    attempt: int,
    holder: str,
    organization_id: UUID,
    api_key_id: UUID | None,
    grade_ids: Sequence[UUID],
    numerators: Sequence[int],
    contract_id: UUID | None,
    exclude: Sequence[UUID],
    now: datetime,
    may_split: bool = False,
) -> tuple[Any, ...]:
    """The parameters of OPEN_SQL in their order, with the market's periods from the settings."""
    assert grade_ids, "name at least the version in force"
    assert len(grade_ids) == len(numerators)
    return (
        id,
        request_id,
        attempt,
        holder,
        organization_id,
        api_key_id,
        list(grade_ids),
        list(numerators),
        contract_id,
        now,
        settings.DELIVERY_PERIOD_S,
        settings.SETTLEMENT_PERIOD_S,
        PPM - settings.OPERATING_MARGIN_PPM,
        list(exclude),
        may_split,
    )


def part_arguments(
    *,
    hold_id: UUID,
    id: UUID,  # noqa: A002
    amount_numerator: int,
    is_admission: bool,
    now: datetime,
) -> tuple[Any, ...]:
    """The parameters of OPEN_PART_SQL in their order."""
    return (
        hold_id,
        id,
        amount_numerator,
        is_admission,
        now,
        settings.DELIVERY_PERIOD_S,
        settings.SETTLEMENT_PERIOD_S,
        PPM - settings.OPERATING_MARGIN_PPM,
    )


def open_hold(
    *,
    id: UUID,  # noqa: A002
    organization_id: UUID,
    grade_ids: Sequence[UUID],
    numerators: Sequence[int],
    now: datetime,
    request_id: UUID | None = None,
    attempt: int = 0,
    holder: str = "service",
    api_key_id: UUID | None = None,
    contract_id: UUID | None = None,
    exclude: Sequence[UUID] = (),
    may_split: bool = False,
) -> Opened:
    """Choose the contract that pays and hold on it; the answer's `outcome` says whether it worked.

    With `may_split` the hold may be smaller than asked for: it is the last of a contract that goes on beyond its
    volume, and `open_part` is to hold the rest.
    """
    arguments = open_arguments(
        id=id,
        request_id=request_id or id,
        attempt=attempt,
        holder=holder,
        organization_id=organization_id,
        api_key_id=api_key_id,
        grade_ids=grade_ids,
        numerators=numerators,
        contract_id=contract_id,
        exclude=exclude,
        now=now,
        may_split=may_split,
    )
    with connection.cursor() as cursor:
        cursor.execute(OPEN_SQL, arguments)
        return Opened(*cursor.fetchone())


def take_rest(*, id: UUID, most_numerator: int, now: datetime) -> int:  # noqa: A002
    """Add what is left of the hold's contract to it, at most so much, if that goes on beyond its volume; how much."""
    with connection.cursor() as cursor:
        cursor.execute(TAKE_REST_SQL, (id, most_numerator, now))
        return int(cursor.fetchone()[0])


def open_part(
    *,
    hold_id: UUID,
    id: UUID,  # noqa: A002
    amount_numerator: int,
    now: datetime,
    is_admission: bool = False,
) -> Opened:
    """Hold part 1 of a request whose first hold is at its contract's end, under the contract's overage policy."""
    arguments = part_arguments(
        hold_id=hold_id, id=id, amount_numerator=amount_numerator, is_admission=is_admission, now=now
    )
    with connection.cursor() as cursor:
        cursor.execute(OPEN_PART_SQL, arguments)
        return Opened(*cursor.fetchone())


def extend_hold(*, id: UUID, delta_numerator: int, now: datetime) -> str:  # noqa: A002
    """Grow (or shrink) an open hold: ok, contract_exhausted, insufficient_funds, spend_cap_reached or closed."""
    with connection.cursor() as cursor:
        cursor.execute(EXTEND_SQL, (id, delta_numerator, now))
        return str(cursor.fetchone()[0])


def capture_hold(*, id: UUID, numerator: int, event: bytes, source_id: UUID, now: datetime) -> Captured:  # noqa: A002
    """Capture at most the hold and put the gateway's event into the metering inbox, in one transaction."""
    with connection.cursor() as cursor:
        cursor.execute(CAPTURE_SQL, (id, numerator, event, source_id, now))
        return Captured(*cursor.fetchone())


def void_hold(*, id: UUID, now: datetime) -> str:  # noqa: A002
    """Give an open hold back whole: ok, or the state it was in."""
    with connection.cursor() as cursor:
        cursor.execute(VOID_SQL, (id, now))
        return str(cursor.fetchone()[0])


def sweep_holds(*, now: datetime, limit: int = 500) -> int:
    """End the holds whose request must be over but whose gateway never said so (it was killed).

    The agent's signed count is captured, at most the hold; without one the hold is voided shortly before its
    settlement period is settled. Returns how many were ended. Several sweepers share the work: each passes over what
    another, or a gateway that lives after all, is just ending.
    """
    overdue = Hold.objects.filter(status=Hold.Status.OPEN, expires_at__lte=now - SWEEP_GRACE)
    ids = list(overdue.order_by("expires_at", "pk").values_list("pk", flat=True)[:limit])
    return sum(_sweep_free(hold_id, now) for hold_id in ids)


@transaction.atomic
def _sweep_free(hold_id: UUID, now: datetime) -> bool:
    free = Hold.objects.select_for_update(skip_locked=True, of=("self",)).select_related("grade")
    hold = free.filter(pk=hold_id, status=Hold.Status.OPEN).first()
    return hold is not None and _sweep(hold, now)


def _sweep(hold: Hold, now: datetime) -> bool:
    first = _first_part(hold)
    if first is None:
        return void_hold(id=hold.pk, now=now) == "ok"
    event = (
        StoredEvent.objects.filter(
            # The delivery key names the first part's.
            contract_id=first.contract_id,
            period_start=hold.period_start,
            request_id=hold.request_id,
            offering_id=hold.offering_id,
            attempt=hold.attempt,
            source__kind="agent",
        )
        .order_by("id")
        .first()
    )
    if event is not None:
        return _capture_reported(hold, first, event, now)
    settles_at = settlement_period(hold.opened_at).end + timedelta(
        seconds=hold.grade.max_request_s + settings.SETTLEMENT_GRACE_S
    )
    if now < settles_at - timedelta(seconds=settings.SETTLEMENT_GRACE_S / 2):
        return False
    logger.warning("hold voided: no meter reported its request", extra={"hold_id": str(hold.pk)})
    return void_hold(id=hold.pk, now=now) == "ok"


def _first_part(hold: Hold) -> Hold | None:
    """The hold of part 0, this one or its sibling. None: that was given back, and so nothing was delivered."""
    if hold.part == 0:
        return hold
    siblings = Hold.objects.filter(request_id=hold.request_id, attempt=hold.attempt, part=0)
    return siblings.exclude(status=Hold.Status.VOIDED).first()


def _capture_reported(hold: Hold, first: Hold, stored: StoredEvent, now: datetime) -> bool:
    standard_ppm = standard_ppm_of(hold.grade_id)
    counts = {
        bucket: count for bucket in Bucket if (count := getattr(stored, f"{bucket.value}_tokens")) is not None
    }
    # Part by part as the gateway would have: the first covers what it can, the next the rest.
    buckets = cap_counts(counts, standard_ppm, first.amount_numerator)
    is_split = hold.part == 1
    if is_split:
        rest = {bucket: count - buckets[bucket] for bucket, count in counts.items()}
        if not any(rest.values()):
            return void_hold(id=hold.pk, now=now) == "ok"
        buckets = cap_counts(rest, standard_ppm, hold.amount_numerator)
        is_capped = buckets != rest
    else:
        is_capped = buckets != counts
        is_split = (
            is_capped
            and Hold.objects.filter(request_id=hold.request_id, attempt=hold.attempt, part=1)
            .exclude(status=Hold.Status.VOIDED)
            .exists()
        )
        is_capped = is_capped and not is_split
    flags = [Flag.RECOVERED, *([Flag.CAPPED] if is_capped else []), *([Flag.SPLIT] if is_split else [])]
    event = UsageEvent(
        id=hold.pk,
        sequence=1,
        request_id=hold.request_id,
        attempt=hold.attempt,
        part=hold.part,
        contract_id=hold.contract_id,
        offering_id=hold.offering_id,
        grade_id=hold.grade_id,
        rate_id=hold.rate_id,
        period_start=hold.period_start.astimezone(UTC),
        occurred_at=hold.opened_at.astimezone(UTC),
        buckets=dict(buckets),
        finish=Finish(stored.finish),
        bytes_in=stored.bytes_in if hold.part == 0 else 0,
        bytes_out=stored.bytes_out if hold.part == 0 else 0,
        duration_ms=stored.duration_ms or 0,
        api_key_id=hold.api_key_id,
        flags=tuple(flags),
        first_byte_ms=stored.first_byte_ms if hold.part == 0 else None,
    )
    captured = capture_hold(
        id=hold.pk,
        numerator=standard_numerator(buckets, standard_ppm),
        event=encode_event(event) + b"\n",
        source_id=gateway_source(now).id,
        now=now,
    )
    return captured.outcome == "ok"
