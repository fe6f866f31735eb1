"""Reads for simulated contracts: what was used of a grade, what more of it cost then, what was charged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connection

from marketplace.billing.models import ChargeKind
from marketplace.billing.selectors import to_bill_sql
from marketplace.contracts.models import Contract
from pricing.models import Grade
from pricing.months import Period, prorated
from pricing.rate_tariffs import tariffs_of_sources
from pricing.simulating import Cheapest, KnownRate, Overage, PeriodUsage, RateStep, Terms
from providers.list_rates import list_rate_moves
from providers.models import Offering

# Above any contract month, which is what the longest charge is for.
_LONGEST_CHARGE: Final = timedelta(days=32)
_AT_ONCE: Final = 2_000

# Of each delivery period what is to be billed, and whether any of it came under another version of the grade.
_USED: Final = f"""
SELECT period_start, sum(numerator)::bigint, bool_or(grade_id <> %(grade)s)
FROM ({to_bill_sql("contract_id = ANY (%(contracts)s::uuid[])")}) AS to_bill
GROUP BY period_start HAVING sum(numerator) > 0
ORDER BY period_start
"""  # noqa: S608
# The rates of overage that were known before delivery: of several versions in a period the newest is last.
_OVERAGE: Final = """
SELECT period.period_start, rate.id, rate.micros_per_mtok
FROM contracts_periodrate period
JOIN pricing_grade grade ON grade.id = period.grade_id AND grade.family_id = %(family)s
JOIN pricing_rate rate ON rate.id = period.overage_rate_id
WHERE period.period_start >= %(since)s AND period.period_start < %(until)s
ORDER BY period.period_start, grade.version
"""
_PAID: Final = """
SELECT charge.kind, charge.period_start, charge.period_end, sum(charge.amount_micros)::bigint
FROM billing_charge charge JOIN pricing_grade grade ON grade.id = charge.grade_id AND grade.family_id = %(family)s
WHERE charge.organization_id = %(organization)s AND charge.period_start > %(longest_since)s
  AND charge.period_start < %(until)s AND charge.period_end > %(since)s
GROUP BY 1, 2, 3
ORDER BY 2, 3, 1
"""


@dataclass(slots=True)
class Seen:
    """What is noticed while reading."""

    another_version: bool = False
    prorated: bool = False


def usage_of(
    organization_id: UUID, grade: Grade, terms: Terms, term: Sequence[Period], seen: Seen
) -> Iterator[PeriodUsage]:
    """What was used, by delivery period and in their order; of it nothing is kept."""
    since, until = term[0].start, term[-1].end
    contracts = Contract.objects.filter(
        organization_id=organization_id, grade__family_id=grade.family_id, starts_at__lt=until
    )
    asked = {
        "contracts": list(contracts.values_list("id", flat=True)),
        "grade": grade.id,
        "family": grade.family_id,
        "since": since,
        "until": until,
    }
    cheapest = Cheapest(() if terms.overage is Overage.STOP else _list_rates(grade, since, until))
    rates = _rows(_OVERAGE, asked) if terms.overage is Overage.SPOT else iter(())
    # Read side by side, both in the order of time: no plan of a join can make the two quadratic.
    ahead = next(rates, None)
    for start, numerator, of_another in _rows(_USED, asked):
        seen.another_version |= of_another
        overage = None
        while ahead is not None and ahead[0] <= start:
            overage = KnownRate(ahead[1], ahead[2]) if ahead[0] == start else None
            ahead = next(rates, None)
        yield PeriodUsage(start, numerator, cheapest.at(start), overage)


def _list_rates(grade: Grade, since: datetime, until: datetime) -> Iterator[RateStep]:
    """How list rates moved, of the offerings that are not withdrawn today and do not sell in packages."""
    offerings = Offering.objects.filter(grade__family_id=grade.family_id).exclude(
        status=Offering.Status.WITHDRAWN
    )
    tariffs = tariffs_of_sources(offerings.values_list("id", flat=True))
    for moved_at, offering_id, rate in list_rate_moves(offerings, since, until):
        known = None
        if rate.comparable is not None:
            known = KnownRate(rate.rate_id, rate.comparable, tariffs.get(rate.rate_id))
        yield RateStep(moved_at, offering_id, known)


def paid_of(organization_id: UUID, grade: Grade, term: Sequence[Period], seen: Seen) -> list[dict[str, int]]:
    """What was charged of the grade, by month and kind; a charge of a longer period pro rata by time."""
    since, until = term[0].start, term[-1].end
    asked = {
        "organization": organization_id,
        "family": grade.family_id,
        "since": since,
        "longest_since": since - _LONGEST_CHARGE,
        "until": until,
    }
    paid: list[dict[str, int]] = [defaultdict(int) for _ in term]
    for kind, start, end, amount in _rows(_PAID, asked):
        for month, kinds in zip(term, paid, strict=True):
            if start >= month.end or end <= month.start:
                continue
            if start >= month.start and end <= month.end:
                kinds[kind] += amount
                continue
            seen.prorated = True
            part = Period(max(start, month.start), min(end, month.end))
            kinds[kind] += prorated(amount, part, whole=Period(start, end))
    return [in_order(kinds) for kinds in paid]


def _rows(sql: str, asked: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """By a cursor of the server's, a few at a time, inside a transaction: nothing is in memory as a whole."""
    with connection.chunked_cursor() as cursor:
        cursor.execute(sql, asked)
        while rows := cursor.fetchmany(_AT_ONCE):
            yield from rows


def in_order(kinds: Mapping[str, int]) -> dict[str, int]:
    """Amounts by kind, in the order in which kinds are listed everywhere."""
    return {str(kind): kinds[kind] for kind in ChargeKind.values if kind in kinds}
