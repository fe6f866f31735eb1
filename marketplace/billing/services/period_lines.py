"""From a contract's roll-ups of one settlement period to its lines, by the kind of contract (DESIGN 8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from django.db.models import QuerySet

from marketplace.billing.lines import (
    Line,
    LineKey,
    Share,
    Terms,
    TierPlace,
    corrections,
    remedy_line,
    spot_lines,
    usage_line,
)
from marketplace.billing.models import Charge, ChargeKind, Settlement
from marketplace.billing.resold import with_resellers
from marketplace.billing.selectors import Metered
from marketplace.billing.services.committed_months import delivery_line
from marketplace.billing.services.failing import (
    AwardOutcome,
    FailureEvidence,
    award_outcomes,
    failure_evidence,
)
from marketplace.billing.services.firm_failing import firm_periods
from marketplace.billing.services.reselling import ResoldByPeriod, resold_in
from marketplace.billing.services.tariff_months import Tiered, count_in_month, tier_lines
from marketplace.contracts.models import Accrual, Allocation, Contract, ContractKind, Entitlement, Payment
from marketplace.ledger.models import Hold
from marketplace.periods import Period
from pricing.models import Rate
from pricing.units import NUMERATOR_PER_LOT


@dataclass(slots=True)
class Sources:
    """What pays for a contract in one settlement period: its accrual, its awards, or its prepaid months. Locked."""

    contract: Contract
    period: Period
    accrual: Accrual | None
    awards: list[Entitlement]
    # Prepaid months alone: their usage is paid.
    months: list[Entitlement]
    open_holds: set[UUID]
    committed_months: list[Entitlement] = field(default_factory=list)
    # A committed contract's delivery periods in which something was down, as awards (`firm_failing`).
    firm: list[Entitlement] = field(default_factory=list)
    unsettled_awards: list[Entitlement] = field(default_factory=list)
    evidence: FailureEvidence = field(default_factory=FailureEvidence)
    resold: ResoldByPeriod = field(default_factory=dict)
    # What is priced by a month's volume; read with the usage (`count_tiers`).
    tiered: Tiered = field(default_factory=Tiered)
    # Rates that were read for many contracts at once.
    rates: Mapping[UUID, Rate] | None = None

    def rates_of(self, rate_ids: Sequence[UUID]) -> Mapping[UUID, Rate]:
        return Rate.objects.in_bulk(rate_ids) if self.rates is None else self.rates

    def outcomes(self, metered: Sequence[Metered]) -> list[AwardOutcome]:
        """What the awards came to, were this all that was delivered."""
        return award_outcomes(self.evidence, [*self.awards, *self.firm], metered)

    def holds_for(self, lines: Sequence[Line]) -> dict[LineKey, UUID]:
        """Which open hold pays which line; lines without one are charged to the balance itself, or are paid ahead."""
        by_award = {(award.rate_id, award.period_start): award.ledger_hold_id for award in self.awards}
        paid_ahead = {month.rate_id for month in self.months}
        accrued = self.accrual.ledger_hold_id if self.accrual else None
        holds: dict[LineKey, UUID] = {}
        for line in lines:
            hold_id = by_award.get(line.key, None if line.rate_id in paid_ahead else accrued)
            if hold_id is not None and hold_id in self.open_holds:
                holds[line.key] = hold_id
        return holds

    def take_open_holds(self) -> list[UUID]:
        """The holds still to be closed, in id order; they are closed once."""
        taken = sorted(self.open_holds)
        self.open_holds.clear()
        return taken


def lock_sources(contract: Contract, period: Period) -> Sources:
    """Lock the accrual, then the awards, in id order, so that no late capture slips in between."""
    accrual = (
        Accrual.objects.select_for_update().filter(contract=contract, settlement_start=period.start).first()
    )
    awards: list[Entitlement] = []
    months: list[Entitlement] = []
    firm: list[Entitlement] = []
    if contract.kind == ContractKind.SPOT:
        rows = _entitlements(contract).filter(period_start__gte=period.start, period_start__lt=period.end)
        awards = list(rows.select_for_update(of=("self",)).order_by("id"))
    elif contract.kind == ContractKind.COMMITTED:
        rows = _entitlements(contract).filter(period_start__lt=period.end, period_end__gt=period.start)
        months = list(rows.order_by("period_start"))
        firm, evidence = firm_periods(contract, months, period)
    hold_ids = [award.ledger_hold_id for award in awards] + ([accrual.ledger_hold_id] if accrual else [])
    return Sources(
        contract=contract,
        period=period,
        accrual=accrual,
        awards=awards,
        months=months if contract.payment == Payment.PREPAID else [],
        committed_months=months,
        firm=firm,
        open_holds=_open(hold_ids),
        unsettled_awards=[award for award in awards if award.settled_at is None],
        evidence=evidence if firm else failure_evidence(contract, awards),
        resold=resold_in(contract, awards),
    )


def count_tiers(sources: Sources, metered: Sequence[Metered], *, run: int) -> None:
    """Place what is priced by a month's volume in its months, and keep them locked: before lines are asked for."""
    recorded = [line for line in _recorded(sources, run=run) if line.place is not None]
    sources.tiered = count_in_month(sources.contract, sources.period, metered, recorded)


def lines_of_run(
    settlement: Settlement, sources: Sources, metered: Sequence[Metered], *, fee_ppm: int
) -> list[Line]:
    """The lines a run has to write: all of them on the first run, only differences on later ones."""
    month_rates = {month.rate_id for month in sources.months}
    delivered = [item for item in metered if item.rate_id in month_rates]
    lines = _desired(sources, metered, fee_ppm)
    recorded = [line for line in _recorded(sources, run=settlement.run) if line.place is None]
    if settlement.run > 1:
        charged_before = [
            line for line in recorded if line.rate_id not in month_rates or line.kind == ChargeKind.REMEDY
        ]
        # A remedy stays a remedy when it changes: it has no fee, and what it bills is no volume.
        lines = [
            line
            for kind, is_remedy in ((ChargeKind.ADJUSTMENT, False), (ChargeKind.REMEDY, True))
            for line in corrections(
                [line for line in lines if (line.kind == ChargeKind.REMEDY) == is_remedy],
                [line for line in charged_before if (line.kind == ChargeKind.REMEDY) == is_remedy],
                kind=kind,
            )
        ]
    kind = ChargeKind.USAGE if settlement.run == 1 else ChargeKind.ADJUSTMENT
    for month in sources.months:
        terms = _month_terms(sources, month)
        before = [line for line in recorded if line.key == (terms.rate_id, terms.period_start)]
        inside = _inside(delivered, terms)
        delta = _delta(_by_offering(inside), before)
        estimated = sum(item.estimated for item in inside) - sum(line.estimated_numerator for line in before)
        if delta or estimated:
            line = delivery_line(sources.contract, month, kind, terms, delta, fee_ppm)
            lines.append(replace(line, estimated_numerator=estimated))
    if settlement.run == 1 and _has_rights(sources):
        kind = ChargeKind.OVERAGE
    return lines + tier_lines(sources.tiered, sources.period, kind=kind, fee_ppm=fee_ppm)


def _has_rights(sources: Sources) -> bool:
    """Awards and months cover only their own rate: anything else a contract delivered is overage."""
    return bool(sources.awards or sources.committed_months)


def waiting_amount(sources: Sources, metered: Sequence[Metered], *, fee_ppm: int) -> int:
    """What the buyer would pay on top if all that is disputed and not ruled on were billed, in micros, without tax."""
    paid_ahead = {month.rate_id for month in sources.months}
    charged = [item for item in metered if item.rate_id not in paid_ahead]
    if not any(item.waiting for item in charged):
        return 0
    most = [
        item if item.rate_id in paid_ahead else replace(item, numerators=_with_waiting(item))
        for item in metered
    ]
    after, before = _desired(sources, most, fee_ppm), _desired(sources, metered, fee_ppm)
    amount = sum(line.amount_micros for line in after) - sum(line.amount_micros for line in before)
    return amount + sources.tiered.waiting_micros()


def _with_waiting(item: Metered) -> dict[UUID, int]:
    return {
        offering: numerator + item.waiting.get(offering, 0) for offering, numerator in item.numerators.items()
    }


def hold_has_captures(hold_id: UUID) -> bool:
    """Whether anything was posted against a hold, which decides whether it ends posted or voided."""
    return Hold.objects.filter(pk=hold_id, captured_micros__gt=0).exists()


def _desired(sources: Sources, metered: Sequence[Metered], fee_ppm: int) -> list[Line]:
    """What a period comes to but for the usage of paid months, which lessens what failed of them and costs nothing."""
    lines: list[Line] = []
    by_award = {(award.rate_id, award.period_start): award for award in sources.awards}
    paid_ahead = {month.rate_id for month in sources.months}
    other = [
        item
        for item in metered
        if item.rate_id not in paid_ahead
        and item.rate_id not in sources.tiered.counted
        and (item.rate_id, item.period_start) not in by_award
    ]
    used = {(item.rate_id, item.period_start): item for item in metered}
    outcomes: dict[tuple[UUID, datetime], list[AwardOutcome]] = defaultdict(list)
    for outcome in sources.outcomes(metered):
        outcomes[outcome.award.id, outcome.award.period_start].append(outcome)
    for key, award in sorted(by_award.items(), key=lambda item: (item[0][1], item[0][0])):
        allocated = {
            offering: numerator // NUMERATOR_PER_LOT
            for offering, numerator in sources.evidence.allocated.get(award.period_start, {}).items()
        }
        resold = sources.resold.get(award.period_start, {})
        lines += [
            line
            if line.kind == ChargeKind.REMEDY
            else with_resellers(line, allocated, resold, fee_ppm=fee_ppm)
            for line in _award_lines(award, used.get(key), outcomes[award.id, award.period_start], fee_ppm)
        ]
    for firm in sources.firm:
        lines += _remedy_lines(_terms_of(firm), outcomes[firm.id, firm.period_start])
    covered = _has_rights(sources)
    own_rates_of_months = {month.rate_id for month in sources.committed_months}
    sums: dict[tuple[UUID, UUID], dict[UUID, int]] = defaultdict(lambda: defaultdict(int))
    estimated: dict[tuple[UUID, UUID], int] = defaultdict(int)
    for item in other:
        estimated[item.rate_id, item.grade_id] += item.estimated
        for offering, numerator in item.numerators.items():
            sums[item.rate_id, item.grade_id][offering] += numerator
    rates = sources.rates_of([rate_id for rate_id, _ in sums])
    for (rate_id, grade_id), numerators in sorted(sums.items()):
        terms = Terms(
            rate_id, grade_id, rates[rate_id].micros_per_mtok, sources.period.start, sources.period.end
        )
        own_rates = _own_rates(sources, terms, numerators)
        is_overage = covered and rate_id not in own_rates_of_months
        kind = ChargeKind.OVERAGE if is_overage else ChargeKind.USAGE
        lines.append(
            usage_line(kind, terms, numerators, fee_ppm, own_rates, estimated=estimated[rate_id, grade_id])
        )
    return lines


def _own_rates(sources: Sources, terms: Terms, offerings: Iterable[UUID]) -> dict[UUID, int] | None:
    """Committed in arrears: each provider's own firm rate, the contract's where a stranger stood in."""
    contract = sources.contract
    if contract.kind != ContractKind.COMMITTED or terms.rate_id != contract.rate_id:
        return None
    firm = Allocation.objects.filter(contract=contract, period_start__isnull=True)
    own = dict(firm.values_list("offering_id", "rate_micros_per_mtok"))
    return {offering: own.get(offering, terms.rate_micros_per_mtok) for offering in offerings}


def _award_lines(
    award: Entitlement, used: Metered | None, outcomes: Sequence[AwardOutcome], fee_ppm: int
) -> list[Line]:
    rate, terms = award.rate, _terms_of(award)
    lines = spot_lines(
        terms,
        used.numerators if used else {},
        entitled_lots=award.entitled_numerator // NUMERATOR_PER_LOT,
        failed=award.released_numerator + sum(outcome.parts.failed for outcome in outcomes),
        minimum_take_ppm=rate.grade.spot_minimum_take_ppm,
        deliverable={outcome.offering_id: outcome.parts.deliverable for outcome in outcomes},
        fee_ppm=fee_ppm,
        estimated=used.estimated if used else 0,
    )
    return [*lines, *_remedy_lines(terms, outcomes)]


def _remedy_lines(terms: Terms, outcomes: Sequence[AwardOutcome]) -> list[Line]:
    remedy = remedy_line(terms, {outcome.offering_id: outcome.remedy_micros for outcome in outcomes})
    return [remedy] if remedy.amount_micros else []


def _terms_of(award: Entitlement) -> Terms:
    rate = award.rate
    return Terms(rate.id, rate.grade_id, rate.micros_per_mtok, award.period_start, award.period_end)


def _recorded(sources: Sources, *, run: int) -> list[Line]:
    """What earlier runs of the period have charged but for service credits, which are a matter of their own."""
    if run == 1:
        return []
    charges = charges_of_period(sources.contract, sources.period).exclude(kind=ChargeKind.SERVICE_CREDIT)
    return lines_of_charges(charges)


def charges_of_period(contract: Contract, period: Period) -> QuerySet[Charge]:
    """What earlier runs of the period have charged."""
    return Charge.objects.filter(settlement__contract=contract, settlement__settlement_start=period.start)


def lines_of_charges(charges: QuerySet[Charge]) -> list[Line]:
    """Recorded charges as the lines they were made of."""
    return [
        Line(
            kind=charge.kind,
            rate_id=charge.rate_id,
            grade_id=charge.grade_id,
            rate_micros_per_mtok=charge.rate_micros_per_mtok,
            period_start=charge.period_start,
            period_end=charge.period_end,
            numerator=charge.numerator,
            amount_micros=charge.amount_micros,
            shares={
                earning.ask_id or earning.offering_id: Share(
                    earning.numerator, earning.gross_micros, earning.fee_micros
                )
                for earning in charge.earnings.all()
            },
            estimated_numerator=charge.estimated_numerator,
            place=place_of(charge),
        )
        for charge in charges.prefetch_related("earnings")
    ]


def place_of(charge: Charge) -> TierPlace | None:
    """Where a charge stands in a month of tiers or packages, if it is of one."""
    if charge.tariff_month_id is None:
        return None
    assert charge.since_numerator is not None, "billing_charge_of_a_month"
    return TierPlace(charge.tariff_month_id, charge.tier, charge.since_numerator)


def _month_terms(sources: Sources, month: Entitlement) -> Terms:
    """The part of the settlement period that lies in the month: a period may straddle two months."""
    start: datetime = max(sources.period.start, month.period_start)
    end: datetime = min(sources.period.end, month.period_end)
    return Terms(month.rate_id, month.rate.grade_id, 0, start, end)


def _inside(metered: Iterable[Metered], terms: Terms) -> list[Metered]:
    return [
        item
        for item in metered
        if item.rate_id == terms.rate_id and terms.period_start <= item.period_start < terms.period_end
    ]


def _by_offering(metered: Iterable[Metered]) -> dict[UUID, int]:
    sums: dict[UUID, int] = defaultdict(int)
    for item in metered:
        for offering, numerator in item.numerators.items():
            sums[offering] += numerator
    return sums


def _delta(now_by_offering: Mapping[UUID, int], recorded: Iterable[Line]) -> dict[UUID, int]:
    delta = dict(now_by_offering)
    for line in recorded:
        for offering, share in line.shares.items():
            delta[offering] = delta.get(offering, 0) - share.numerator
    return {offering: numerator for offering, numerator in delta.items() if numerator}


def _open(hold_ids: Iterable[UUID | None]) -> set[UUID]:
    known = [hold_id for hold_id in hold_ids if hold_id is not None]
    return set(Hold.objects.filter(id__in=known, status=Hold.Status.OPEN).values_list("id", flat=True))


def _entitlements(contract: Contract) -> QuerySet[Entitlement]:
    return Entitlement.objects.filter(contract=contract).select_related("rate__grade")
