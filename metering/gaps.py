"""Numbers that a meter gave out and that never came: closed when they do, or when the operator accepts the loss.

Part of this room's services: `metering.services` exports what is public. Who asks the meter's host for what is missing
is `providers.gaps`.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.errors import Conflict, InvalidInput, NotFound
from metering.models import MeterSource
from metering.selectors import sequence_gaps


@transaction.atomic
def close_filled_gaps(*, source_id: UUID) -> bool:
    """Whether nothing is missing of the meter (any more). Doing it again changes nothing."""
    source = MeterSource.objects.select_for_update(no_key=True).get(pk=source_id)
    if source.gap_since is None:
        return True
    gaps = sequence_gaps(source)
    if not gaps:
        MeterSource.objects.filter(pk=source_id).update(gap_since=None)
        return True
    complete_until = gaps[0][0] - 1
    if complete_until > source.complete_until:
        MeterSource.objects.filter(pk=source_id).update(complete_until=complete_until)
    return False


@transaction.atomic
def accept_gap(*, source_id: UUID, first: int, last: int, now: datetime) -> None:
    """The meter's earliest missing numbers are lost for good; what is missing after them is waited for anew.

    Should they come after all, they still count: a gap is about knowing, not about money. The caller notes who accepts
    it and why. Raises NotFound for an unknown meter, InvalidInput naming what is not the earliest gap, Conflict when
    nothing is missing.
    """
    source = MeterSource.objects.select_for_update(no_key=True).filter(pk=source_id).first()
    if source is None:
        raise NotFound("There is no such meter.")
    gaps = sequence_gaps(source)
    if not gaps:
        raise Conflict("Nothing is missing of this meter.")
    if first != gaps[0][0]:
        raise InvalidInput(f"The earliest missing number is {gaps[0][0]}.", field="first")
    if last != gaps[0][1]:
        raise InvalidInput(f"The earliest gap ends with number {gaps[0][1]}.", field="last")
    MeterSource.objects.filter(pk=source_id).update(
        complete_until=last, gap_since=now if len(gaps) > 1 else None
    )
