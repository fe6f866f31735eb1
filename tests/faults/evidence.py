"""What must be true after every fault: each event once, sums of events, charges of sums, books that balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db.models import Sum

from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge
from marketplace.billing.services.settling import settle_due_periods
from marketplace.ledger.selectors import check_ledger
from metering.auditing import check_usage
from metering.models import DisputedUsage, UsageBatch, UsageEvent, UsageRollup

EVER = datetime(2020, 1, 1, tzinfo=UTC)


def assert_counted_once(sent: Mapping[UUID, Set[UUID]]) -> None:
    """By source: exactly the events that were sent are stored, and the roll-ups are their sums."""
    stored = Counter(UsageEvent.objects.values_list("source_id", "id"))
    assert set(stored.values()) <= {1}, "an event was stored twice"
    wanted = {(source, event) for source, events in sent.items() for event in events}
    assert set(stored) == wanted, f"{len(wanted - set(stored))} lost, {len(set(stored) - wanted)} invented"
    assert not UsageBatch.objects.exclude(status=UsageBatch.Status.STORED).exists()
    differences = check_usage(since=EVER)
    assert not differences, differences[:3]


def assert_charged_as_metered(now: datetime) -> None:
    """Once everything up to `now` is due: charges are the roll-ups' less what is in dispute, also when they are
    recomputed, and the books agree.
    """
    result = settle_due_periods(now=now + timedelta(hours=2))
    assert not result.waiting + result.failed, result
    check = check_charges(since=EVER)
    assert not check.differences, check
    assert not check.unsettled, check
    charged = Charge.objects.aggregate(numerator=Sum("numerator"))["numerator"] or 0
    metered = UsageRollup.objects.filter(meter="gateway").aggregate(numerator=Sum("numerator"))["numerator"]
    withheld = DisputedUsage.objects.aggregate(numerator=Sum("withheld_numerator"))["numerator"]
    assert charged == (metered or 0) - (withheld or 0), f"charged {charged}, metered {metered} - {withheld}"
    differences = check_ledger()
    assert not differences, differences[:3]
