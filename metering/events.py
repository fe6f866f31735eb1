"""Single usage events: as each meter saw the same request, on which layer they stand, and what was corrected.

Layers (VEE): `validated` as a meter reported it, `estimated` where a meter counted itself or wrote after a restart,
`edited` where somebody corrected it. The raw layer is the batch in the inbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from django.db import connection
from django.db.models import Q, QuerySet

from marketplace.errors import NotFound
from metering.models import MeterKind, UsageCorrection, UsageEvent
from metering.packing import ESTIMATED_BITS, flags_of
from pricing.units import Bucket

Layer = Literal["validated", "estimated", "edited"]
Status = Literal["counted", "amended", "voided"]
_STATUS: Final[dict[str, Status]] = {
    UsageCorrection.Kind.AMEND: "amended",
    UsageCorrection.Kind.VOID: "voided",
}
# Contracts that an offering supplied in a period, whatever their number: the events' index is by contract.
_SUPPLIED: Final = """
SELECT DISTINCT contract_id FROM metering_usagerollup WHERE offering_id = ANY (%s::uuid[]) AND period_start = %s
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """An event with what else is known of it. `status` tells whether it counts."""

    event: UsageEvent
    status: Status

    @property
    def meter(self) -> str:
        return self.event.source.kind

    @property
    def layer(self) -> Layer:
        if self.event.source.is_editor:
            return "edited"
        return "estimated" if self.event.flags & ESTIMATED_BITS else "validated"

    @property
    def flags(self) -> list[str]:
        return [flag.value for flag in flags_of(self.event.flags)]

    @property
    def buckets(self) -> dict[str, int | None]:
        """Native tokens; null where the meter reported nothing."""
        return {bucket.value: getattr(self.event, f"{bucket.value}_tokens") for bucket in Bucket}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One event, what every meter says of the same part of the same request, and its corrections, oldest first."""

    event: Seen
    witnesses: list[Seen]
    corrections: list[UsageCorrection]


def find_evidence(
    event_id: UUID,
    *,
    contract_ids: Sequence[UUID] | None = None,
    offering_ids: Sequence[UUID] | None = None,
) -> Evidence:
    """Raises NotFound, also for an event of other contracts and offerings than these (None: any)."""
    found = _within(contract_ids, offering_ids).filter(id=event_id).order_by("source_id").first()
    if found is None:
        raise NotFound("There is no such event.")
    # By the index of contract and period; a request has few events.
    same = _within(contract_ids, offering_ids).filter(
        contract_id=found.contract_id,
        period_start=found.period_start,
        request_id=found.request_id,
        attempt=found.attempt,
        part=found.part,
    )
    events = list(same.order_by("id", "source_id"))
    ids = [event.id for event in events]
    # Another meter may have used the same id for something else.
    own_keys = {(event.id, event.source_id) for event in events}
    corrections = [
        correction
        for correction in UsageCorrection.objects.filter(
            Q(target_id__in=ids) | Q(replacement_id__in=ids)
        ).order_by("id")
        if (correction.target_id, correction.target_source_id) in own_keys
        or (correction.replacement_id, correction.replacement_source_id) in own_keys
    ]
    seen = _seen(events, corrections)
    own = next(item for item in seen if (item.event.id, item.event.source_id) == (found.id, found.source_id))
    return Evidence(own, seen, corrections)


def events_of_period(
    period_start: datetime,
    *,
    contract_ids: Sequence[UUID] | None = None,
    offering_ids: Sequence[UUID] | None = None,
    meter: str = MeterKind.GATEWAY,
    before: UUID | None = None,
    size: int,
) -> list[Seen]:
    """At most `size` events of one delivery period with ids below `before`, newest first. One of the two lists is
    needed: the events of the whole market in a period are nobody's question."""
    if contract_ids is None:
        assert offering_ids is not None, "contracts or offerings"
        with connection.cursor() as cursor:
            cursor.execute(_SUPPLIED, [list(offering_ids), period_start])
            contract_ids = [row[0] for row in cursor.fetchall()]
    rows = _within(contract_ids, offering_ids).filter(period_start=period_start, source__kind=meter)
    if before is not None:
        rows = rows.filter(id__lt=before)
    events = list(rows.order_by("-id")[:size])
    return _seen(events, UsageCorrection.objects.filter(target_id__in=[event.id for event in events]))


def _within(contract_ids: Sequence[UUID] | None, offering_ids: Sequence[UUID] | None) -> QuerySet[UsageEvent]:
    rows = UsageEvent.objects.select_related("source")
    if contract_ids is not None:
        rows = rows.filter(contract_id__in=contract_ids)
    if offering_ids is not None:
        rows = rows.filter(offering_id__in=offering_ids)
    return rows


def _seen(
    events: Sequence[UsageEvent], corrections: Sequence[UsageCorrection] | QuerySet[UsageCorrection]
) -> list[Seen]:
    became = {(item.target_id, item.target_source_id): _STATUS.get(item.kind) for item in corrections}
    return [Seen(event, became.get((event.id, event.source_id)) or "counted") for event in events]
