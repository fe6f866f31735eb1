"""Spot contracts: one per bid, one entitlement per award. Orders writes them through these services."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from django.db import transaction

from marketplace.contracts.awards import Award, find_award, record_awards
from marketplace.contracts.models import Contract, ContractKind, Entitlement, OveragePolicy, PeriodRate
from pricing.models import Grade, Rate
from pricing.services import publish_rate


@transaction.atomic
def open_spot_contract(
    *,
    id: UUID,  # noqa: A002
    organization_id: UUID,
    grade_id: UUID,
    max_rate_micros_per_mtok: int,
    now: datetime,
) -> Contract:
    """The contract of a bid, for the bid's life. The same id again gives the same contract."""
    contract, _ = Contract.objects.get_or_create(
        id=id,
        defaults={
            "organization_id": organization_id,
            "grade_id": grade_id,
            "kind": ContractKind.SPOT,
            "currency": Grade.objects.get(pk=grade_id).currency,
            "overage_policy": OveragePolicy.LIST,
            "max_rate_micros_per_mtok": max_rate_micros_per_mtok,
            "starts_at": now,
            "created_at": now,
        },
    )
    return contract


class NewSpotContract(NamedTuple):
    id: UUID
    organization_id: UUID
    max_rate_micros_per_mtok: int


def open_spot_contracts(new: Sequence[NewSpotContract], *, grade_id: UUID, now: datetime) -> None:
    """Contracts of bids in a grade that they took as a substitute, in two statements. Known ids are passed over."""
    currency = Grade.objects.get(pk=grade_id).currency
    Contract.objects.bulk_create(
        [
            Contract(
                id=one.id,
                organization_id=one.organization_id,
                grade_id=grade_id,
                kind=ContractKind.SPOT,
                currency=currency,
                overage_policy=OveragePolicy.LIST,
                max_rate_micros_per_mtok=one.max_rate_micros_per_mtok,
                starts_at=now,
                created_at=now,
            )
            for one in new
        ],
        ignore_conflicts=True,
        batch_size=5_000,
    )


def set_spot_max_rate(*, contract_id: UUID, max_rate_micros_per_mtok: int) -> None:
    """The bid was revised: the most its contract may ever cost, per Mtok, from now on."""
    Contract.objects.filter(pk=contract_id, kind=ContractKind.SPOT).update(
        max_rate_micros_per_mtok=max_rate_micros_per_mtok
    )


def close_spot_contract(*, contract_id: UUID, now: datetime) -> None:
    """The bid is over: no further awards. Those it has are still delivered. Doing it again changes nothing."""
    Contract.objects.filter(pk=contract_id, kind=ContractKind.SPOT).exclude(
        status=Contract.Status.ENDED
    ).update(status=Contract.Status.ENDED)


@transaction.atomic
def record_award(
    *,
    contract_id: UUID,
    period_start: datetime,
    period_end: datetime,
    lots: int,
    rate_id: UUID,
    ledger_hold_id: UUID,
    shares: Sequence[tuple[UUID, int]],
    now: datetime,
) -> Entitlement:
    """What a spot contract got for one delivery period, and which offerings supply how many lots of it.

    The same award again gives the same entitlement. The bucket starts full: a delivery period is short.
    """
    award = Award(contract_id, lots, ledger_hold_id, shares)
    record_awards([award], period_start=period_start, period_end=period_end, rate_id=rate_id)
    return find_award(contract_id=contract_id, period_start=period_start)


@transaction.atomic
def set_period_rate(
    *,
    grade_id: UUID,
    period_start: datetime,
    clearing_rate_micros_per_mtok: int | None,
    overage_micros_per_mtok: int,
    now: datetime,
) -> PeriodRate:
    """What the spot market said of a grade's delivery period. Said once: saying it again changes nothing."""
    found = PeriodRate.objects.filter(grade_id=grade_id, period_start=period_start).first()
    if found is not None:
        return found
    overage = publish_rate(
        grade_id=grade_id,
        kind=Rate.Kind.OVERAGE,
        micros_per_mtok=overage_micros_per_mtok,
        source_id=grade_id,
        now=now,
    )
    period_rate, _ = PeriodRate.objects.get_or_create(
        grade_id=grade_id,
        period_start=period_start,
        defaults={
            "clearing_rate_micros_per_mtok": clearing_rate_micros_per_mtok,
            "overage_rate": overage,
        },
    )
    return period_rate
