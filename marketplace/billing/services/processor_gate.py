"""Rate budget (token bucket) and circuit breaker of a processor, in one row: they hold for all processes together.

The bucket holds one second's calls. Five failures in a row open the breaker for half a minute; then one call is let
through to try, and its success closes it. Times are of the machine's clock: they are about networks, not markets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from django.conf import settings
from django.db import connection

from marketplace import clock
from marketplace.billing.models import ProcessorGate
from marketplace.billing.processors.base import (
    Outcome,
    OutcomeStatus,
    PaymentProcessor,
    ProcessorBusy,
    within_budget,
)

FAILURES_TO_OPEN: Final = 5
OPEN_FOR: Final = timedelta(seconds=30)
# Longer than a call may last: of several workers one tries.
_TRIAL: Final = timedelta(seconds=20)
_CALL_MILLIS: Final = 1_000
# For another request of a call that was let in: so long at most, looking so often.
_MOST_WAIT_S: Final = 5.0
_WAIT_S: Final = 0.05
_TAKE: Final = """
UPDATE billing_processorgate SET
    allowance_millis = left_millis - %(call)s,
    refilled_at = greatest(refilled_at, %(now)s)
FROM (
    SELECT id AS found_id, least(%(rate)s * 1000, allowance_millis + %(rate)s * greatest(0,
        (extract(epoch FROM %(now)s - refilled_at) * 1000)::bigint)) AS left_millis
    FROM billing_processorgate WHERE processor = %(processor)s FOR UPDATE
) AS bucket
WHERE id = found_id AND left_millis >= %(call)s
RETURNING 1
"""
_ADMIT: Final = _TAKE.replace(
    "\nFROM",
    ",\n    open_until = CASE WHEN open_until IS NULL THEN NULL ELSE %(now)s + %(trial)s END\nFROM",
).replace("\nRETURNING", " AND (open_until IS NULL OR open_until <= %(now)s)\nRETURNING")
_Answer = TypeVar("_Answer")


def through_gate(processor: PaymentProcessor, work: Callable[[], _Answer]) -> _Answer:
    """Call the processor if budget and breaker allow it, and tell the breaker how it went. Raises ProcessorBusy.

    The market must not hold a transaction open meanwhile: a network stands behind `work`.
    """
    if not processor.needs_card:
        return work()  # nothing stands behind it
    assert not connection.in_atomic_block, "no transaction is open while the processor is called"
    _admit(processor.name)
    try:
        with within_budget(_Budget(processor.name).spend):
            answer = work()
    except ProcessorBusy:
        _report(processor.name, ok=False)
        raise
    _report(processor.name, ok=not (isinstance(answer, Outcome) and answer.status == OutcomeStatus.UNKNOWN))
    return answer


class _Budget:
    """What a call of several requests (a list of many pages, a payment that needs three) takes beyond its admission.

    It waits, rather than to stop in the middle of something. The breaker does not count here: it let the call in.
    """

    def __init__(self, processor: str) -> None:
        self._processor = processor
        self._is_first = True

    def spend(self) -> bool:
        if self._is_first:
            self._is_first = False
            return True
        until = time.monotonic() + _MOST_WAIT_S
        while not self._take():
            if time.monotonic() >= until:
                return False
            time.sleep(_WAIT_S)
        return True

    def _take(self) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(_TAKE, _values(self._processor))
            return cursor.fetchone() is not None


def _values(processor: str) -> dict[str, Any]:
    return {
        "processor": processor,
        "now": clock.wall_now(),
        "rate": settings.STRIPE_CALLS_PER_S,
        "call": _CALL_MILLIS,
        "trial": _TRIAL,
    }


def _admit(processor: str) -> None:
    values = _values(processor)
    with connection.cursor() as cursor:
        cursor.execute(_ADMIT, values)
        if cursor.fetchone() is not None:
            return
    full = settings.STRIPE_CALLS_PER_S * _CALL_MILLIS
    made = ProcessorGate(processor=processor, allowance_millis=full - _CALL_MILLIS, refilled_at=values["now"])
    ProcessorGate.objects.bulk_create([made], ignore_conflicts=True)
    if ProcessorGate.objects.filter(pk=made.pk).exists():
        return
    raise ProcessorBusy("the payment processor is not asked just now", retry_after_s=5)


def _report(processor: str, *, ok: bool) -> None:
    """One statement of its own; the count of failures decides in the database who opens the breaker."""
    with connection.cursor() as cursor:
        if ok:
            cursor.execute(
                "UPDATE billing_processorgate SET failures = 0, open_until = NULL WHERE processor = %s "
                "AND (failures > 0 OR open_until IS NOT NULL)",
                [processor],
            )
            return
        cursor.execute(
            "UPDATE billing_processorgate SET failures = failures + 1, "
            "open_until = CASE WHEN failures + 1 >= %s THEN %s ELSE open_until END WHERE processor = %s",
            [FAILURES_TO_OPEN, clock.wall_now() + OPEN_FOR, processor],
        )
