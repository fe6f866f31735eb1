"""Reads of contracts, always of one organization."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import OuterRef, QuerySet, Subquery

from marketplace.contracts.models import (
    Contract,
    Curtailment,
    Entitlement,
    Hold,
    PeriodRate,
    Quote,
)
from marketplace.errors import NotFound
from marketplace.periods import delivery_period
from metering.selectors import recounts_of
from pricing.models import Grade, GradeBucket
from pricing.units import PPM, Bucket, div_half_even
from providers.selectors import find_host


def quotes_of(organization_id: UUID) -> QuerySet[Quote]:
    return Quote.objects.filter(organization_id=organization_id).select_related("grade__family", "contract")


def quote_of(*, organization_id: UUID, quote_id: UUID) -> Quote:
    """Raises NotFound, also for another organization's."""
    quote = quotes_of(organization_id).filter(pk=quote_id).first()
    if quote is None:
        raise NotFound("There is no such quote.")
    return quote


def contracts_of(organization_id: UUID) -> QuerySet[Contract]:
    return Contract.objects.filter(organization_id=organization_id).select_related("grade__family", "rate")


def contract_of(*, organization_id: UUID, contract_id: UUID) -> Contract:
    """Raises NotFound, also for another organization's."""
    contract = contracts_of(organization_id).filter(pk=contract_id).first()
    if contract is None:
        raise NotFound("There is no such contract.")
    return contract


def entitlements_of(contract_id: UUID) -> QuerySet[Entitlement]:
    """Newest period first."""
    return (
        Entitlement.objects.filter(contract_id=contract_id).select_related("rate").order_by("-period_start")
    )


def holds_of_request(*, organization_id: UUID, request_id: UUID) -> list[Hold]:
    """The last attempt of a buyer's request (its generation id): its hold, or those of its two parts.

    Raises NotFound, also for another organization's.
    """
    holds = list(
        Hold.objects.filter(request_id=request_id, contract__organization_id=organization_id)
        .select_related("contract", "grade__family", "rate")
        .order_by("-attempt", "part")
    )
    if not holds:
        raise NotFound("There is no such generation.")
    last = [hold for hold in holds if hold.attempt == holds[0].attempt]
    # What was given back is shown only where nothing else became of it.
    return [hold for hold in last if hold.status != Hold.Status.VOIDED] or last[:1]


def period_rate(*, grade_id: UUID, period_start: datetime) -> PeriodRate | None:
    return (
        PeriodRate.objects.filter(grade_id=grade_id, period_start=period_start)
        .select_related("overage_rate")
        .first()
    )


def with_overage_rates(grades: QuerySet[Grade], *, at: datetime) -> list[tuple[Grade, int | None]]:
    """Grades, each with what overage at spot costs in the delivery period of `at`, in micros per Mtok; one query.

    None where no rate was published for it: then it is the list rate of whoever serves.
    """
    published = PeriodRate.objects.filter(grade=OuterRef("pk"), period_start=delivery_period(at).start)
    rows = grades.annotate(overage_micros=Subquery(published.values("overage_rate__micros_per_mtok")))
    return [(grade, grade.overage_micros) for grade in rows]


def entitlements_in_force(*, contract_ids: list[UUID], at: datetime) -> dict[UUID, Entitlement]:
    """What holds at `at` of each of these contracts that has a period then, in one query."""
    rows = Entitlement.objects.filter(
        contract_id__in=contract_ids, period_start__lte=at, period_end__gt=at
    ).select_related("rate")
    return {entitlement.contract_id: entitlement for entitlement in rows}


def latest_entitlements(contract_ids: list[UUID]) -> dict[UUID, Entitlement]:
    """The newest period of each of these contracts that has one, in one query."""
    rows = (
        Entitlement.objects.filter(contract_id__in=contract_ids)
        .select_related("rate")
        .order_by("contract_id", "-period_start")
        .distinct("contract_id")
    )
    return {entitlement.contract_id: entitlement for entitlement in rows}


@dataclass(frozen=True, slots=True)
class OwnKappa:
    """What a buyer's own traffic in a grade version came to: o200k tokens per native token of delivered text.

    Native tokens that are no text (the end of a turn, the mark-up of a tool call) are in `recounted_tokens` too, so it
    lies a little below what the same text has without them.
    """

    grade: Grade
    recounted_tokens: int
    recount_o200k_tokens: int
    grade_kappa_ppm: int

    @property
    def kappa_ppm(self) -> int:
        return div_half_even(PPM * self.recount_o200k_tokens, self.recounted_tokens)


def own_kappas(
    *, organization_id: UUID, since: datetime, until: datetime, contract_id: UUID | None = None
) -> list[OwnKappa]:
    """Of every grade version the organization had recounted output in; of one contract alone if named.

    Raises NotFound for a contract of another organization.
    """
    if contract_id is not None:
        contract_ids = [contract_of(organization_id=organization_id, contract_id=contract_id).id]
    else:
        contract_ids = list(contracts_of(organization_id).values_list("id", flat=True))
    sums = {one.grade_id: one for one in recounts_of(contract_ids, since=since, until=until)}
    priced = GradeBucket.objects.filter(grade_id__in=list(sums), bucket=Bucket.OUTPUT.value).select_related(
        "grade__family"
    )
    return sorted(
        (
            OwnKappa(
                grade=bucket.grade,
                recounted_tokens=sums[bucket.grade_id].recounted_tokens,
                recount_o200k_tokens=sums[bucket.grade_id].recount_o200k_tokens,
                grade_kappa_ppm=bucket.kappa_ppm,
            )
            for bucket in priced
        ),
        key=lambda one: (one.grade.family.slug, one.grade.version),
    )


def curtailments_of_host(*, organization_id: UUID, host_id: UUID) -> QuerySet[Curtailment]:
    """Of the organization's host, newest first. Raises NotFound, also for another organization's host."""
    host = find_host(organization_id, host_id)
    return (
        Curtailment.objects.filter(allocation__offering__host=host)
        .select_related("allocation")
        .order_by("-id")
    )
