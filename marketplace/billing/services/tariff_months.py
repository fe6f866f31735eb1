"""List prices by tiers, volume or packages: a buyer's calendar month so far, and the lines of a settlement.

A settlement charges what leads from one total of the month to the next, whichever period the usage lies in
(`pricing.month_tiers`, docs/tariffs.md). All of a buyer's contracts count in the same month, so its row is locked: two
of them are settled one after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from django.db.models import F

from marketplace.billing.lines import Line, Share, TierPlace
from marketplace.billing.models import ChargeKind, TariffMonth
from marketplace.billing.selectors import Metered
from marketplace.contracts.models import Contract
from marketplace.ids import derived_id
from marketplace.periods import Period
from pricing.models import Rate
from pricing.month_tiers import MonthLine, month_charge, month_lines
from pricing.months import calendar_month
from pricing.rate_tariffs import tariffs_by_rate
from pricing.rating import fee_of
from pricing.tariffs import Tariff


@dataclass(frozen=True, slots=True)
class Counted:
    """One rate's usage of a contract in a settlement period, as a step of the buyer's month.

    `lines` lead from what was counted to what is known now; `estimated` is what the estimates among it grew by.
    """

    rate: Rate
    tariff: Tariff
    month: TariffMonth
    lines: Sequence[MonthLine]
    estimated: int
    waiting: int

    @property
    def after(self) -> int:
        return self.month.counted_numerator + sum(line.numerator for line in self.lines)


@dataclass(frozen=True, slots=True)
class Tiered:
    """What of a settlement period is priced by a month's volume: by rate, and what earlier runs have charged of it."""

    counted: Mapping[UUID, Counted] = field(default_factory=dict)
    recorded: Sequence[Line] = ()

    def volumes(self) -> Iterator[tuple[UUID, UUID, int]]:
        """Grade, offering and amount in micros of what the period's own usage was charged, line by line.

        What is charged again for the month so far, where a volume price falls, is not the period's.
        """
        for line in self.recorded:
            if line.numerator:
                for offering, share in line.shares.items():
                    yield line.grade_id, offering, share.gross_micros
        for one in self.counted.values():
            for step in one.lines:
                if step.numerator:
                    yield one.rate.grade_id, one.rate.source_id, step.amount_micros

    def waiting_micros(self) -> int:
        """What all that is in dispute would be charged on top; below zero where a volume price would fall."""
        return sum(
            month_charge(one.tariff, before=one.after, after=one.after + one.waiting)
            for one in self.counted.values()
        )


def count_in_month(
    contract: Contract, period: Period, metered: Sequence[Metered], recorded: Iterable[Line]
) -> Tiered:
    """The period's usage at rates of tiers and packages, with the months locked that it counts in.

    `recorded` are the lines that earlier runs of the period have charged in months.
    """
    recorded = list(recorded)
    tariffs = tariffs_by_rate({item.rate_id for item in metered} | {line.rate_id for line in recorded})
    if not tariffs:
        return Tiered()
    rates = Rate.objects.in_bulk(list(tariffs))
    counted = {}
    for rate_id, tariff in sorted(tariffs.items()):
        month = _locked_month(contract.organization_id, rate_id, period.start)
        own = [item for item in metered if item.rate_id == rate_id]
        before = [line for line in recorded if line.rate_id == rate_id]
        used = sum(sum(item.numerators.values()) for item in own) - sum(line.numerator for line in before)
        counted[rate_id] = Counted(
            rates[rate_id],
            tariff,
            month,
            month_lines(tariff, before=month.counted_numerator, after=month.counted_numerator + used),
            sum(item.estimated for item in own) - sum(line.estimated_numerator for line in before),
            sum(sum(item.waiting.values()) for item in own),
        )
    return Tiered(counted, recorded)


def tier_lines(tiered: Tiered, period: Period, *, kind: str, fee_ppm: int) -> list[Line]:
    """The lines of one run: of each rate a line for each tier that its usage came to lie in."""
    return [
        line for one in tiered.counted.values() for line in _lines(one, period, kind=kind, fee_ppm=fee_ppm)
    ]


def record_counted(lines: Iterable[Line]) -> None:
    """Count what the lines charge, in the months that `count_in_month` has locked."""
    volumes: dict[UUID, int] = defaultdict(int)
    for line in lines:
        if line.place is not None:
            volumes[line.place.month_id] += line.numerator
    for month_id, numerator in sorted(volumes.items()):
        TariffMonth.objects.filter(pk=month_id).update(counted_numerator=F("counted_numerator") + numerator)


def _lines(one: Counted, period: Period, *, kind: str, fee_ppm: int) -> list[Line]:
    lines = [_line(one, step, period, kind=kind, fee_ppm=fee_ppm) for step in one.lines]
    if one.estimated and not lines:
        # An estimate that came true: it moves nothing, and is no longer an estimate.
        nothing = MonthLine(None, one.month.counted_numerator, 0, 0)
        lines = [_line(one, nothing, period, kind=kind, fee_ppm=fee_ppm)]
    if one.estimated:
        lines[-1] = replace(lines[-1], estimated_numerator=one.estimated)
    return lines


def _line(one: Counted, step: MonthLine, period: Period, *, kind: str, fee_ppm: int) -> Line:
    amount, rate = step.amount_micros, one.rate
    share = Share(
        step.numerator, amount, fee_of(amount, fee_ppm) if amount >= 0 else -fee_of(-amount, fee_ppm)
    )
    tier_rate = rate.micros_per_mtok if step.tier is None else one.tariff.tiers[step.tier].rate
    return Line(
        # What is charged again for the month so far is no usage.
        kind=kind if step.numerator else ChargeKind.ADJUSTMENT,
        rate_id=rate.id,
        grade_id=rate.grade_id,
        rate_micros_per_mtok=tier_rate,
        period_start=period.start,
        period_end=period.end,
        numerator=step.numerator,
        amount_micros=amount,
        # A list rate is one offering's.
        shares={rate.source_id: share} if share else {},
        place=TierPlace(one.month.id, step.tier, step.since_numerator),
    )


def _locked_month(organization_id: UUID, rate_id: UUID, at: datetime) -> TariffMonth:
    start = calendar_month(at).start
    month_id = derived_id(organization_id, f"tariff:{rate_id}:{start.isoformat()}")
    fresh = TariffMonth(
        id=month_id, organization_id=organization_id, rate_id=rate_id, month_start=start, counted_numerator=0
    )
    TariffMonth.objects.bulk_create([fresh], ignore_conflicts=True)
    return TariffMonth.objects.select_for_update(no_key=True).get(pk=month_id)
