"""What each award of a contract's settlement period came to: delivered, failed and unused, and the remedy (DESIGN 8).

Evidence is read once, under the contract's lock (`failure_evidence`); from it and the metered volume the outcomes
follow without a clock or a query, so that a run, a re-run and the auditor come to the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Sum

from marketplace.billing.models import ChargeKind, DeliveryOutcome, Earning, Settlement
from marketplace.billing.outcomes import latest_outcomes
from marketplace.billing.selectors import Metered
from marketplace.billing.services.locks import lock_until_commit
from marketplace.billing.services.posting import provider_organizations
from marketplace.billing.services.waterfall import paid_by_bond
from marketplace.contracts.models import Allocation, Contract, Entitlement, PeriodRate
from marketplace.contracts.services import curtailed_parts
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import available_by_organization
from metering.failing import delivered_by_side
from pricing.failures import (
    Benched,
    Outcome,
    Part,
    outcomes_of,
    period_ms,
    remedies_within,
    remedy_micros,
    replaced_numerators,
    worked_numerator,
)
from pricing.rating import lots_numerator, price_of
from providers.benching import benches_in_force
from providers.outages import PeriodDown, down_in_periods

# A month's gross of the grade bounds what a provider owes in remedies of it.
CAP_SPAN: Final = timedelta(days=30)

_BOUGHT_ELSEWHERE = """
SELECT rollup.grade_id, rollup.period_start, rollup.offering_id, sum(rollup.numerator)::bigint
  FROM metering_usagerollup rollup
  JOIN contracts_contract contract ON contract.id = rollup.contract_id
  JOIN pricing_rate rate ON rate.id = rollup.rate_id
 WHERE contract.organization_id = %(buyer)s AND rollup.grade_id = ANY (%(grades)s) AND rollup.meter = 'gateway'
   AND rollup.period_start >= %(since)s AND rollup.period_start < %(until)s AND rate.kind IN ('list', 'overage')
 GROUP BY 1, 2, 3
"""


Place = tuple[UUID, datetime]


@dataclass(frozen=True, slots=True)
class AwardOutcome:
    """One offering's part of one award. `cap_micros` is None while no remedy was ever owed for it."""

    award: Entitlement
    offering_id: UUID
    provider_id: UUID
    parts: Outcome
    replaced: int = 0
    replacement_rate: int = 0
    remedy_micros: int = 0
    cap_micros: int | None = None

    def facts(self) -> tuple[object, ...]:
        """What a run records: two runs that see the same write it once."""
        return (
            self.parts.entitled,
            self.parts.released,
            self.parts.delivered,
            self.parts.failed,
            self.parts.down_ms,
            self.parts.curtailed,
            self.parts.excused,
            self.replaced,
            self.replacement_rate,
            self.remedy_micros,
            self.cap_micros,
        )


@dataclass(slots=True)
class FailureEvidence:
    """All that outcomes depend on but the volume: who owed what, how long it was down, what replaced it, the caps."""

    allocated: dict[datetime, dict[UUID, int]] = field(default_factory=dict)
    # Of a committed contract's period: what was released and resold.
    released: dict[datetime, dict[UUID, int]] = field(default_factory=dict)
    down: list[PeriodDown] = field(default_factory=list)
    # By (offering, period): what was curtailed, and for how long it could not be had.
    curtailed: dict[Place, list[Part]] = field(default_factory=dict)
    # By (rate, period, offering) what was delivered of input and of output; by (offering, period) the bench in force.
    sides: Mapping[tuple[UUID, datetime, UUID], tuple[int, int]] = field(default_factory=dict)
    benches: Mapping[Place, Benched] = field(default_factory=dict)
    providers: Mapping[UUID, UUID] = field(default_factory=dict)
    # By grade and period: what the buyer bought of whom, what of that another contract's failure counts already, at
    # which rate.
    bought: dict[Place, dict[UUID, int]] = field(default_factory=dict)
    replaced_for_others: dict[Place, int] = field(default_factory=dict)
    replacement_rates: dict[Place, int] = field(default_factory=dict)
    known_caps: dict[tuple[datetime, UUID], int] = field(default_factory=dict)
    # By provider and grade, what his remedies may still come to before the awards at hand.
    room_micros: dict[tuple[UUID, UUID], int] = field(default_factory=dict)


def failure_evidence(contract: Contract, awards: Sequence[Entitlement]) -> FailureEvidence:
    """Read what the outcomes of these awards depend on.

    Where something was down it waits for other settlers of the same provider and grade, until the caller's
    transaction ends, so that two of them do not both use what is left of one cap.
    """
    evidence = FailureEvidence()
    if not awards:
        return evidence
    ends = {award.period_start: award.period_end for award in awards}
    rows = Allocation.objects.filter(contract=contract, period_start__in=list(ends))
    for start, offering, lots in rows.values_list("period_start", "offering_id", "firm_lots"):
        assert start is not None
        evidence.allocated.setdefault(start, {})[offering] = lots_numerator(lots)
    offerings = {offering for parts in evidence.allocated.values() for offering in parts}
    evidence.providers = provider_organizations(offerings)
    places = [
        (offering, start, ends[start]) for start, parts in evidence.allocated.items() for offering in parts
    ]
    cut = curtailed_parts(contract.id, ends)
    evidence.down = down_in_periods(
        contract.id, places, curtailed={place: [at for at, _ in parts] for place, parts in cut.items()}
    )
    note_curtailed(evidence, cut)
    if any(period.down_ms or period.curtailed_ms for period in evidence.down):
        read_remedy_terms(evidence, contract, awards)
    return evidence


def note_curtailed(evidence: FailureEvidence, cut: Mapping[Place, Sequence[tuple[datetime, int]]]) -> None:
    """Complete the evidence by what was curtailed, and for how long it could not be had (of `evidence.down`)."""
    for period in evidence.down:
        place = (period.offering_id, period.period_start)
        evidence.curtailed[place] = [
            (numerator, spent_ms)
            for (_, numerator), spent_ms in zip(cut.get(place, []), period.curtailed_ms, strict=True)
        ]


def award_outcomes(
    evidence: FailureEvidence, awards: Sequence[Entitlement], metered: Sequence[Metered]
) -> list[AwardOutcome]:
    """The outcomes of these awards, in order of period and offering."""
    used = {(item.rate_id, item.period_start): item.numerators for item in metered}
    down: dict[datetime, dict[UUID, int]] = defaultdict(dict)
    for period in evidence.down:
        down[period.period_start][period.offering_id] = period.down_ms
    room = dict(evidence.room_micros)
    found: list[AwardOutcome] = []
    for award in sorted(awards, key=lambda award: award.period_start):
        start = award.period_start
        outcomes = outcomes_of(
            evidence.allocated.get(start, {}),
            used.get((award.rate_id, start), {}),
            down[start],
            period_ms=period_ms(start, award.period_end),
            released=evidence.released.get(start),
            curtailed={
                offering: evidence.curtailed.get((offering, start), [])
                for offering in evidence.allocated.get(start, {})
            },
            worked=_worked(evidence, award, used.get((award.rate_id, start), {})),
        )
        failed = {offering: parts.failed for offering, parts in outcomes.items() if parts.failed}
        replaced = replaced_numerators(_left_to_replace(evidence, award, failed), failed)
        for offering, parts in outcomes.items():
            outcome = AwardOutcome(award, offering, evidence.providers[offering], parts)
            if parts.failed:
                outcome = _with_remedy(evidence, outcome, replaced[offering], room)
            found.append(outcome)
    return found


def record_outcomes(
    settlement: Settlement, outcomes: Sequence[AwardOutcome], contract: Contract, *, now: datetime
) -> None:
    """Keep what this run sees otherwise than the last one: rows of its own, append-only."""
    known = _recorded(contract, outcomes)
    DeliveryOutcome.objects.bulk_create(
        DeliveryOutcome(
            id=derived_id(settlement.id, f"outcome:{one.offering_id}:{one.award.period_start.isoformat()}"),
            settlement=settlement,
            run=settlement.run,
            contract=contract,
            organization_id=contract.organization_id,
            provider_organization_id=one.provider_id,
            offering_id=one.offering_id,
            grade_id=one.award.rate.grade_id,
            period_start=one.award.period_start,
            period_end=one.award.period_end,
            entitled_numerator=one.parts.entitled,
            released_numerator=one.parts.released,
            delivered_numerator=one.parts.delivered,
            failed_numerator=one.parts.failed,
            unused_numerator=one.parts.unused,
            down_ms=one.parts.down_ms,
            curtailed_numerator=one.parts.curtailed,
            excused_numerator=one.parts.excused,
            rate_micros_per_mtok=one.award.rate.micros_per_mtok,
            replaced_numerator=one.replaced,
            replacement_micros_per_mtok=one.replacement_rate,
            remedy_micros=one.remedy_micros,
            remedy_cap_micros=one.cap_micros,
            created_at=now,
        )
        for one in outcomes
        if known.get((one.award.period_start, one.offering_id)) != one.facts()
    )


def have_news(outcomes: Sequence[AwardOutcome], contract: Contract) -> bool:
    """Whether these are others than the last runs recorded. A part that nobody failed needs no record."""
    known = _recorded(contract, outcomes)
    return any(
        known[key] != one.facts()
        if (key := (one.award.period_start, one.offering_id)) in known
        else one.parts.failed
        for one in outcomes
    )


def _recorded(
    contract: Contract, outcomes: Sequence[AwardOutcome]
) -> dict[tuple[datetime, UUID], tuple[object, ...]]:
    """What the last runs that saw these parts recorded, as `AwardOutcome.facts`."""
    if not outcomes:
        return {}
    rows = latest_outcomes().filter(
        contract=contract, period_start__in={outcome.award.period_start for outcome in outcomes}
    )
    return {
        (row.period_start, row.offering_id): (
            row.entitled_numerator,
            row.released_numerator,
            row.delivered_numerator,
            row.failed_numerator,
            row.down_ms,
            row.curtailed_numerator,
            row.excused_numerator,
            row.replaced_numerator,
            row.replacement_micros_per_mtok,
            row.remedy_micros,
            row.remedy_cap_micros,
        )
        for row in rows
    }


def _with_remedy(
    evidence: FailureEvidence, outcome: AwardOutcome, replaced: int, room: dict[tuple[UUID, UUID], int]
) -> AwardOutcome:
    start, rate = outcome.award.period_start, outcome.award.rate
    replacement_rate = evidence.replacement_rates.get((rate.grade_id, start), rate.micros_per_mtok)
    owed = remedy_micros(
        entitled=outcome.parts.entitled,
        failed=outcome.parts.failed,
        rate=rate.micros_per_mtok,
        replaced=replaced,
        replacement_rate=replacement_rate,
    )
    whose = (outcome.provider_id, rate.grade_id)
    room[whose] = room.get(whose, 0) + price_of(outcome.parts.entitled, rate.micros_per_mtok)
    cap = evidence.known_caps.get((start, outcome.offering_id), max(0, room[whose]))
    [paid] = remedies_within([owed], cap)
    room[whose] -= paid
    return replace(
        outcome, replaced=replaced, replacement_rate=replacement_rate, remedy_micros=paid, cap_micros=cap
    )


def _worked(evidence: FailureEvidence, award: Entitlement, used: Mapping[UUID, int]) -> dict[UUID, int]:
    """What each offering's delivery took of its host, as volume of the bench's mix. What is in dispute is left out."""
    worked: dict[UUID, int] = {}
    for offering, volume in used.items():
        bench = evidence.benches.get((offering, award.period_start))
        made_in, made_out = evidence.sides.get((award.rate_id, award.period_start, offering), (0, 0))
        carried = made_in + made_out
        if bench is not None and carried:
            worked[offering] = worked_numerator(
                input_numerator=made_in * volume // carried,
                output_numerator=made_out * volume // carried,
                bench=bench,
            )
    return worked


def _left_to_replace(evidence: FailureEvidence, award: Entitlement, failed: Mapping[UUID, int]) -> int:
    """What the buyer bought of the grade from offerings that did not fail him, and no other award has counted."""
    place = (award.rate.grade_id, award.period_start)
    bought = evidence.bought.get(place, {})
    elsewhere = sum(numerator for offering, numerator in bought.items() if offering not in failed)
    return max(0, elsewhere - evidence.replaced_for_others.get(place, 0))


def read_remedy_terms(evidence: FailureEvidence, contract: Contract, awards: Sequence[Entitlement]) -> None:
    """Complete the evidence by what work took and what remedies depend on, behind locks of each provider and grade."""
    ends = {award.period_start: award.period_end for award in awards}
    evidence.sides = delivered_by_side(contract.id, since=min(ends), until=max(ends.values()))
    evidence.benches = benches_in_force(
        (offering, start) for start in sorted(ends) for offering in evidence.allocated.get(start, {})
    )
    grades = sorted({award.rate.grade_id for award in awards})
    starts = [award.period_start for award in awards]
    since, until = min(starts), max(award.period_end for award in awards)
    whose = sorted((provider, grade) for provider in set(evidence.providers.values()) for grade in grades)
    for provider, grade in whose:
        lock_until_commit(derived_id(provider, f"remedies:{grade}"))
    buyer = contract.organization_id
    with connection.cursor() as cursor:
        cursor.execute(_BOUGHT_ELSEWHERE, {"buyer": buyer, "grades": grades, "since": since, "until": until})
        for grade, start, offering, numerator in cursor.fetchall():
            evidence.bought.setdefault((grade, start), {})[offering] = numerator
    rates = PeriodRate.objects.filter(grade_id__in=grades, period_start__in=starts)
    for grade, start, rate in rates.values_list("grade_id", "period_start", "overage_rate__micros_per_mtok"):
        evidence.replacement_rates[grade, start] = rate
    for row in latest_outcomes().filter(organization_id=buyer, grade_id__in=grades, period_start__in=starts):
        if row.contract_id != contract.id:
            others, place = evidence.replaced_for_others, (row.grade_id, row.period_start)
            others[place] = others.get(place, 0) + row.replaced_numerator
        elif row.remedy_cap_micros is not None:
            evidence.known_caps[row.period_start, row.offering_id] = row.remedy_cap_micros
    for provider, grade in whose:
        evidence.room_micros[provider, grade] = _room(provider, grade, contract, since, until)


def _room(provider: UUID, grade: UUID, contract: Contract, since: datetime, until: datetime) -> int:
    """A month's settled gross of the grade, plus his bond, less the remedies; without the awards at hand.

    A remedy is a negative gross, so one sum has both. Of the bond counts what it is now and what it has paid of them:
    else a remedy would lower the cap twice.
    """
    earnings = Earning.objects.filter(
        organization_id=provider,
        ask__isnull=True,
        charge__grade_id=grade,
        period_start__gte=until - CAP_SPAN,
        period_start__lt=until,
    ).exclude(charge__contract=contract, period_start__gte=since)
    gross = int(earnings.aggregate(gross=Sum("gross_micros"))["gross"] or 0)
    held = available_by_organization([provider], kind=AccountKind.BOND, currency=contract.currency)
    return gross + held[provider] + paid_by_bond(provider, earnings.filter(charge__kind=ChargeKind.REMEDY))
