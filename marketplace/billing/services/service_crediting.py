"""Service credits: a settlement period held against what its grade promises of speed (docs/service-levels.md).

What is measured follows from the gateway's usage events, the volume to be billed and the remedies, without a clock:
a run, a re-run and the auditor come to the same. A credit is a charge of kind `service_credit`, to the buyer's balance
from the provider's payable account, down the waterfall that remedies take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.billing.lines import Line, Terms, corrections, service_credit_line
from marketplace.billing.models import ChargeKind, ServiceFigure, ServicePeriod, Settlement
from marketplace.billing.selectors import Metered
from marketplace.billing.service_periods import latest_service_periods
from marketplace.billing.services.failing import AwardOutcome
from marketplace.billing.services.period_lines import Sources, charges_of_period, lines_of_charges
from marketplace.billing.services.posting import provider_organizations
from marketplace.contracts.models import Contract
from marketplace.ids import derived_id
from metering.latency import latencies
from pricing.models import Rate, ServiceLevel
from pricing.promising import terms_of
from pricing.service_levels import credit_micros, gross_micros, is_broken
from pricing.units import NUMERATOR_PER_MTOK


@dataclass(frozen=True, slots=True)
class Figure:
    """One level, as the period was measured against it."""

    level: ServiceLevel
    requests: int
    measured_us: int | None
    is_broken: bool


@dataclass(frozen=True, slots=True)
class OfferingService:
    """What one offering's delivery of a settlement period was measured at, and the credit for it, in micros."""

    grade_id: UUID
    offering_id: UUID
    provider_id: UUID
    gross_micros: int
    remedy_micros: int
    credit_micros: int
    figures: tuple[Figure, ...]

    def facts(self) -> tuple[object, ...]:
        """What a run records: two runs that see the same write it once."""
        figures = {(one.level.id, one.requests, one.measured_us) for one in self.figures}
        return (self.gross_micros, self.remedy_micros, self.credit_micros, figures)


def measure_service(
    sources: Sources, metered: Sequence[Metered], outcomes: Iterable[AwardOutcome]
) -> list[OfferingService]:
    """Every offering's service in the period, of grades with service levels; by grade and offering.

    What an earlier run measured and is not billed any more is there too, with nothing. Reads usage events only of
    grades with levels.
    """
    contract, period = sources.contract, sources.period
    levels: dict[UUID, list[ServiceLevel]] = defaultdict(list)
    known = {(row.grade_id, row.offering_id) for row in _recorded(contract, period.start)}
    grades = {item.grade_id for item in metered} | {grade for grade, _ in known}
    for level in ServiceLevel.objects.filter(grade_id__in=grades).order_by("metric", "percentile"):
        levels[level.grade_id].append(level)
    if not levels:
        return []
    rates = Rate.objects.in_bulk({item.rate_id for item in metered})
    volumes: dict[tuple[UUID, UUID], list[tuple[int, int]]] = {place: [] for place in known}
    for item in metered:
        if item.grade_id in levels and item.rate_id not in sources.tiered.counted:
            for offering, numerator in item.numerators.items():
                volume = (rates[item.rate_id].micros_per_mtok, numerator)
                volumes.setdefault((item.grade_id, offering), []).append(volume)
    for grade, offering, amount in sources.tiered.volumes():
        if grade in levels:
            # An amount by itself: that many micros for one Mtok.
            volumes.setdefault((grade, offering), []).append((amount, NUMERATOR_PER_MTOK))
    remedies: dict[tuple[UUID, UUID], int] = defaultdict(int)
    for outcome in outcomes:
        remedies[outcome.award.rate.grade_id, outcome.offering_id] += outcome.remedy_micros
    providers = provider_organizations({offering for _, offering in volumes})
    figures = {grade: _figures(sources, levels[grade]) for grade in sorted(levels)}
    found = []
    for grade, offering in sorted(volumes):
        measured = figures[grade].get(offering) or [Figure(level, 0, None, False) for level in levels[grade]]
        # Volume that was taken off may come off a dearer tier than it was charged in: then nothing is left to credit.
        gross = max(0, gross_micros(volumes[grade, offering]))
        remedy = remedies[grade, offering]
        broken = [one.level.credit_ppm for one in measured if one.is_broken]
        credit = credit_micros(gross, broken, remedy=remedy)
        found.append(
            OfferingService(grade, offering, providers[offering], gross, remedy, credit, tuple(measured))
        )
    return found


def credit_lines(
    sources: Sources, metered: Sequence[Metered], service: Sequence[OfferingService]
) -> list[Line]:
    """The credits that a run has to write, a line for each grade: all on the first run, then only differences."""
    if not service:
        return []  # Levels never go, so there was no credit before either.
    charges = charges_of_period(sources.contract, sources.period).filter(kind=ChargeKind.SERVICE_CREDIT)
    recorded = lines_of_charges(charges)
    owed: dict[UUID, dict[UUID, int]] = defaultdict(dict)
    for one in service:
        if one.credit_micros:
            owed[one.grade_id][one.offering_id] = one.credit_micros
    desired = [
        service_credit_line(_terms(sources, metered, grade, recorded), by_offering)
        for grade, by_offering in sorted(owed.items())
    ]
    return corrections(desired, recorded, kind=ChargeKind.SERVICE_CREDIT)


def record_service(
    settlement: Settlement, service: Sequence[OfferingService], contract: Contract, *, now: datetime
) -> None:
    """Keep what this run measured otherwise than the last one: rows of its own, append-only."""
    if not service:
        return
    known = {
        (row.grade_id, row.offering_id): (
            row.gross_micros,
            row.remedy_micros,
            row.credit_micros,
            {(one.level_id, one.requests, one.measured_us) for one in row.figures.all()},
        )
        for row in _recorded(contract, settlement.settlement_start)
    }
    news = [one for one in service if known.get((one.grade_id, one.offering_id)) != one.facts()]
    ids = {one: derived_id(settlement.id, f"service:{one.grade_id}:{one.offering_id}") for one in news}
    ServicePeriod.objects.bulk_create(
        ServicePeriod(
            id=ids[one],
            settlement=settlement,
            contract=contract,
            organization_id=contract.organization_id,
            provider_organization_id=one.provider_id,
            offering_id=one.offering_id,
            grade_id=one.grade_id,
            run=settlement.run,
            period_start=settlement.settlement_start,
            period_end=settlement.settlement_end,
            gross_micros=one.gross_micros,
            remedy_micros=one.remedy_micros,
            credit_micros=one.credit_micros,
            created_at=now,
        )
        for one in news
    )
    ServiceFigure.objects.bulk_create(
        ServiceFigure(
            id=derived_id(ids[one], f"figure:{figure.level.id}"),
            period_id=ids[one],
            level=figure.level,
            requests=figure.requests,
            measured_us=figure.measured_us,
            is_broken=figure.is_broken,
        )
        for one in news
        for figure in one.figures
    )


def _figures(sources: Sources, levels: Sequence[ServiceLevel]) -> dict[UUID, list[Figure]]:
    """By offering, its figure of every level of the grade."""
    measured: dict[UUID, dict[UUID, tuple[int, int]]] = defaultdict(dict)
    for level in levels:
        for found in latencies(
            sources.contract.id,
            since=sources.period.start,
            until=sources.period.end,
            grade_id=level.grade_id,
            metric=level.metric,
            percentile=level.percentile,
            max_input_tokens=level.max_input_tokens,
        ):
            measured[found.offering_id][level.id] = (found.requests, found.percentile_us)
    return {
        offering: [_figure(level, *by_level.get(level.id, (0, None))) for level in levels]
        for offering, by_level in measured.items()
    }


def _figure(level: ServiceLevel, requests: int, measured_us: int | None) -> Figure:
    broken = is_broken(terms_of(level), requests=requests, measured_us=measured_us)
    return Figure(level, requests, measured_us, broken)


def _terms(sources: Sources, metered: Sequence[Metered], grade_id: UUID, recorded: Sequence[Line]) -> Terms:
    """A credit is of all rates at once; its charge names the first of them, and later runs the same one again."""
    named = [line.rate_id for line in recorded if line.grade_id == grade_id]
    rate_id = named[0] if named else min(item.rate_id for item in metered if item.grade_id == grade_id)
    rate = Rate.objects.get(pk=rate_id)
    return Terms(rate.id, grade_id, rate.micros_per_mtok, sources.period.start, sources.period.end)


def _recorded(contract: Contract, period_start: datetime) -> list[ServicePeriod]:
    rows = latest_service_periods().filter(contract=contract, period_start=period_start)
    return list(rows.prefetch_related("figures"))
