"""Nominations: what a buyer gives up of his firm volume in a delivery period, and what comes back to him.

The auction and its gate are the market's (orders); this keeps the rights. Released volume leaves the month's
entitlement at once, under the same CHECK that gateway holds meet, so nobody can use what he has released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import F

from marketplace.contracts.models import (
    Contract,
    ContractKind,
    Entitlement,
    Nomination,
    NominationShare,
    Payment,
)
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.periods import Period
from pricing.rating import lots_numerator

_NO_MONTH: Final = (
    "It must lie in a month of the contract that has been made: the running one, or the next one."
)


class ContractSuspended(Conflict):
    """Nothing is delivered on the contract until its month is paid, and nothing of it can be released."""

    code = "contract_suspended"


class NotCommitted(Conflict):
    """Only a committed contract has firm volume to release."""

    code = "not_committed"


@transaction.atomic
def release_volume(
    *, organization_id: UUID, contract_id: UUID, periods: Sequence[Period], lots: int, now: datetime
) -> Contract:
    """Take `lots` of every one of these delivery periods out of the buyer's rights, or of none.

    Raises NotFound, NotCommitted, ContractSuspended, or InvalidInput: more than the firm lots of a period, or than is
    left of the month (`lots`), no month of the contract (`period_start`). The contract is locked, then the month, then
    the periods. Whoever calls holds the periods' gates open.
    """
    contract = (
        Contract.objects.select_for_update(of=("self",), no_key=True)
        .select_related("grade__family")
        .filter(pk=contract_id, organization_id=organization_id)
        .first()
    )
    if contract is None:
        raise NotFound("There is no such contract.")
    _check_releasable(contract)
    assert contract.firm_lots is not None
    if lots > contract.firm_lots:
        raise InvalidInput(f"The contract has {contract.firm_lots} firm lots a period.", field="lots")
    by_month = _by_month(contract, periods)
    for month in sorted(by_month.values(), key=lambda inside: inside[0].id):
        entitlement, inside = month
        taken = lots_numerator(lots) * len(inside)
        if taken > entitlement.entitled_numerator:
            raise InvalidInput("That much is not left of the month's volume.", field="lots")
        gone = F("held_numerator") + F("used_numerator") + F("released_numerator") + F("failed_numerator")
        reserved = Entitlement.objects.filter(pk=entitlement.pk, entitled_numerator__gte=gone + taken)
        if not reserved.update(released_numerator=F("released_numerator") + taken):
            raise InvalidInput("That much is not left of the month's volume.", field="lots")
        for period in inside:
            _nominate(contract, entitlement, period, lots, now)
    return contract


def resolve_nominations(
    *,
    period_start: datetime,
    resold: Mapping[UUID, Mapping[UUID, int]],
) -> int:
    """The period is published: `resold` lots by contract and offering stay sold, the rest is the buyers' again.

    Of every contract named, and only once: again changes nothing. Returns how many nominations were resolved.
    """
    open_ = Nomination.objects.filter(
        contract_id__in=list(resold), period_start=period_start, resold_lots__isnull=True
    )
    months = open_.values_list("entitlement_id", flat=True)
    # The gateway takes a month before its period, so do we; in the order of ids, as everybody.
    locked = Entitlement.objects.select_for_update(no_key=True).filter(pk__in=list(months)).order_by("pk")
    list(locked.values_list("pk", flat=True))
    done = 0
    for nomination in open_.select_for_update(no_key=True).order_by("pk"):
        parts = {offering: lots for offering, lots in resold[nomination.contract_id].items() if lots}
        sold = sum(parts.values())
        returned = nomination.released_lots - sold
        assert returned >= 0, "more was resold than released"
        NominationShare.objects.bulk_create(
            NominationShare(
                id=derived_id(nomination.id, f"share:{offering}"),
                nomination=nomination,
                offering_id=offering,
                resold_lots=lots,
            )
            for offering, lots in sorted(parts.items())
        )
        Nomination.objects.filter(pk=nomination.pk).update(resold_lots=sold)
        Entitlement.objects.filter(pk=nomination.entitlement_id).update(
            released_numerator=F("released_numerator") - lots_numerator(returned)
        )
        done += 1
    return done


def _check_releasable(contract: Contract) -> None:
    if contract.kind != ContractKind.COMMITTED:
        raise NotCommitted("Only a committed contract has volume to release.")
    if contract.status == Contract.Status.SUSPENDED:
        raise ContractSuspended("The contract's month is not paid.")
    if contract.status != Contract.Status.ACTIVE:
        raise NotCommitted("The contract is over.")


def _by_month(contract: Contract, periods: Sequence[Period]) -> dict[UUID, tuple[Entitlement, list[Period]]]:
    months = list(
        Entitlement.objects.filter(
            contract=contract, period_start__lte=periods[-1].start, period_end__gt=periods[0].start
        )
    )
    found: dict[UUID, tuple[Entitlement, list[Period]]] = {}
    for period in periods:
        month = next((one for one in months if one.period_start <= period.start < one.period_end), None)
        if month is None:
            raise InvalidInput(_NO_MONTH, field="period_start")
        prepaid = contract.payment == Payment.PREPAID
        if prepaid and month.paid_at is None and month.ledger_hold_id is None:
            raise ContractSuspended("The contract's month is not paid.")
        found.setdefault(month.id, (month, []))[1].append(period)
    return found


def _nominate(contract: Contract, entitlement: Entitlement, period: Period, lots: int, now: datetime) -> None:
    """More of a period may be released until its gate, by the buyer who released some of it before."""
    assert contract.firm_lots is not None
    nomination, made = Nomination.objects.get_or_create(
        contract=contract,
        period_start=period.start,
        defaults={
            "id": derived_id(contract.id, f"nomination:{period.start.isoformat()}"),
            "entitlement": entitlement,
            "period_end": period.end,
            "firm_lots": contract.firm_lots,
            "released_lots": lots,
            "created_at": now,
        },
    )
    if made:
        return
    if nomination.resold_lots is not None:
        raise Conflict("That delivery period is published already.", field="period_start")
    kept = contract.firm_lots - nomination.released_lots
    if lots > kept:
        raise InvalidInput(
            f"Of {contract.firm_lots} firm lots {nomination.released_lots} are released already in a period.",
            field="lots",
        )
    Nomination.objects.filter(pk=nomination.pk).update(released_lots=F("released_lots") + lots)
