"""What the providers of a committed contract failed, one delivery period at a time: the same rule as for an award.

In each period they owe the firm lots of the contract, or what was left of the month's volume before it where that is
less. A period in which nothing was down or curtailed has no F and is not looked at further: a month of them needs no
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings

from marketplace.billing.models import DeliveryOutcome
from marketplace.billing.selectors import metered_usage
from marketplace.billing.services.failing import FailureEvidence, note_curtailed, read_remedy_terms
from marketplace.billing.services.posting import provider_organizations
from marketplace.contracts.models import Allocation, Contract, Entitlement, NominationShare, Payment
from marketplace.contracts.services import curtailed_parts
from marketplace.periods import Period, delivery_period
from pricing.commitments import own_usage
from pricing.rating import lots_numerator
from pricing.units import split_by_weight
from providers.outages import down_in_periods


def firm_periods(
    contract: Contract, months: Sequence[Entitlement], period: Period
) -> tuple[list[Entitlement], FailureEvidence]:
    """The delivery periods of a settlement period in which something was down or curtailed, now or in an earlier run.

    Each as an award would be, with its month's id and rate; these rows are never saved. Waits as `failure_evidence`
    does.
    """
    owed = {
        start: month
        for month in months
        for start in _starts(
            max(period.start, month.period_start, _owed_from(contract, month)),
            min(period.end, month.period_end, contract.delivers_until or month.period_end),
        )
    }
    evidence = FailureEvidence()
    if not owed:
        return [], evidence
    allocations = Allocation.objects.filter(contract=contract, period_start__isnull=True)
    firm = {
        offering: int(lots_numerator(lots))
        for offering, lots in allocations.values_list("offering_id", "firm_lots")
    }
    places = [(offering, start, delivery_period(start).end) for start in owed for offering in firm]
    cut = curtailed_parts(contract.id, owed)
    down = down_in_periods(
        contract.id, places, curtailed={place: [at for at, _ in parts] for place, parts in cut.items()}
    )
    known = DeliveryOutcome.objects.filter(contract=contract, period_start__in=list(owed))
    looked_at = {one.period_start for one in down if one.down_ms or one.curtailed_ms}
    looked_at.update(known.values_list("period_start", flat=True))
    if not looked_at:
        return [], evidence
    evidence.providers = provider_organizations(set(firm))
    evidence.down = [one for one in down if one.period_start in looked_at]
    note_curtailed(evidence, cut)
    for month in months:
        inside = sorted(start for start in looked_at if owed[start].id == month.id)
        if inside:
            _add_owed(evidence, contract, month, inside, firm)
    periods = [
        Entitlement(
            id=owed[start].id,
            contract=contract,
            period_start=start,
            period_end=delivery_period(start).end,
            rate=owed[start].rate,
            entitled_numerator=sum(evidence.allocated[start].values()),
            released_numerator=sum(evidence.released.get(start, {}).values()),
        )
        for start in sorted(looked_at)
    ]
    read_remedy_terms(evidence, contract, periods)
    return periods, evidence


def _owed_from(contract: Contract, month: Entitlement) -> datetime:
    """Nobody owes anything on a month that is not paid: one charged late is owed from then on."""
    if contract.payment == Payment.ARREARS or month.ledger_hold_id is not None:
        return month.period_start
    return month.period_end if month.paid_at is None else _next_start(month.paid_at)


def _next_start(at: datetime) -> datetime:
    """Of the first delivery period that does not begin before then."""
    running = delivery_period(at)
    return running.start if running.start == at else running.end


def _starts(start: datetime, end: datetime) -> list[datetime]:
    length = timedelta(seconds=settings.DELIVERY_PERIOD_S)
    return [start + number * length for number in range(max(0, (end - start) // length))]


def _add_owed(
    evidence: FailureEvidence,
    contract: Contract,
    month: Entitlement,
    starts: list[datetime],
    firm: dict[UUID, int],
) -> None:
    """A of every one of these periods by offering: R, and of the rest of the firm lots what the volume still had."""
    released = _released(contract, month.period_start, starts[-1])
    used = [
        (item.period_start, sum(item.numerators.values()))
        for item in metered_usage(contract.id, month.period_start, starts[-1])
        if item.rate_id == month.rate_id
    ]
    offerings = sorted(firm)
    for start in starts:
        before = sum(volume for at, volume in used if at < start)
        # What rolled over is burned first and served best effort: nobody owes it.
        resold = sum(sum(parts.values()) for at, parts in released.items() if at <= start)
        gone = own_usage(before, month.rollover_numerator) + resold
        here = released.get(start, {})
        free = [firm[offering] - here.get(offering, 0) for offering in offerings]
        parts = split_by_weight(max(0, min(sum(free), month.volume_numerator - gone)), free)
        evidence.released[start] = here
        evidence.allocated[start] = {
            offering: here.get(offering, 0) + part for offering, part in zip(offerings, parts, strict=True)
        }


def _released(contract: Contract, since: datetime, until: datetime) -> dict[datetime, dict[UUID, int]]:
    """R: what was released and resold of the periods from `since` to `until`, both included, by offering."""
    shares = NominationShare.objects.filter(
        nomination__contract=contract,
        nomination__period_start__gte=since,
        nomination__period_start__lte=until,
    ).values_list("nomination__period_start", "offering_id", "resold_lots")
    found: dict[datetime, dict[UUID, int]] = {}
    for start, offering, lots in shares:
        found.setdefault(start, {})[offering] = lots_numerator(lots)
    return found
