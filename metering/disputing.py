"""Discrepancies and what of the usage they keep from being billed.

The lower count settles at once; the rest waits until the provider accepts the lower, the operator rules, or ten days
are over. What billing takes off is `DisputedUsage.withheld_numerator`, never more than the gateway carried: so no
ruling can raise a charge above what was captured.

Locks: the discrepancy, then its usage by id.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import transaction

from marketplace.errors import Conflict, InvalidInput, NotFound
from metering.models import Discrepancy, DisputedUsage, Reconciliation
from metering.witnesses import Cell, Withheld

# Without a ruling a discrepancy then closes at the lower count.
RULED_WITHIN: Final = timedelta(days=10)
MAX_REASON_CHARACTERS: Final = 500

Kind, Ruling, Status = Discrepancy.Kind, Discrepancy.Ruling, Discrepancy.Status


class DiscrepancyClosed(Conflict):
    """It was accepted or ruled on before; a ruling stands."""

    code = "discrepancy_closed"


@transaction.atomic
def open_discrepancy(
    *,
    host_id: UUID,
    settlement_start: datetime,
    kind: Discrepancy.Kind,
    evidence: dict[str, Any],
    withheld: Mapping[Cell, Withheld],
    now: datetime,
) -> Discrepancy:
    """Open it, or bring an open one to what is known now. One that somebody closed stays as it was ruled."""
    discrepancy, created = Discrepancy.objects.select_for_update().get_or_create(
        host_id=host_id,
        settlement_start=settlement_start,
        kind=kind,
        defaults={"evidence": evidence, "created_at": now},
    )
    if discrepancy.ruling == Ruling.AGREED:
        # Nobody ruled: the meters had come to agree, and no longer do.
        discrepancy.status, discrepancy.ruling, discrepancy.closed_at = Status.OPEN, "", None
        discrepancy.reason = discrepancy.closed_by = ""
    elif discrepancy.status != Status.OPEN:
        return discrepancy
    if not created:
        discrepancy.evidence = evidence
        discrepancy.save()
    _withhold(discrepancy, withheld)
    return discrepancy


def _withhold(discrepancy: Discrepancy, withheld: Mapping[Cell, Withheld]) -> None:
    known = {
        Cell(row.contract_id, row.rate_id, row.offering_id, row.period_start): row
        for row in discrepancy.usage.select_for_update().order_by("pk")
    }
    for cell, row in known.items():
        if cell not in withheld:
            row.delete()
    for cell, one in sorted(withheld.items()):
        counts = {
            "gateway_numerator": one.gateway,
            "lower_numerator": one.lower,
            "withheld_numerator": one.gateway - one.lower,
        }
        if cell not in known:
            DisputedUsage.objects.create(discrepancy=discrepancy, **cell._asdict(), **counts)
        else:
            DisputedUsage.objects.filter(pk=known[cell].pk).update(**counts)


@transaction.atomic
def settle_agreement(*, host_id: UUID, settlement_start: datetime, now: datetime) -> None:
    """Late usage made the meters of a period agree: what is still open about it is closed, and nothing is withheld."""
    found = Discrepancy.objects.filter(
        host_id=host_id, settlement_start=settlement_start, kind=Kind.COUNTS, status=Status.OPEN
    ).first()
    if found is not None:
        _close(
            found.pk,
            status=Status.RESOLVED,
            ruling=Ruling.AGREED,
            reason="Usage that came later made the meters agree.",
            closed_by="reconciliation",
            now=now,
        )


def accept_discrepancy(*, discrepancy_id: UUID, reason: str, closed_by: str, now: datetime) -> Discrepancy:
    """Who counted more gives way: the lower count stands. Raises NotFound, DiscrepancyClosed, InvalidInput (reason)."""
    return _close(
        discrepancy_id,
        status=Status.ACCEPTED,
        ruling=Ruling.LOWER,
        reason=reason,
        closed_by=closed_by,
        now=now,
    )


def resolve_discrepancy(
    *,
    discrepancy_id: UUID,
    ruling: str,
    reason: str,
    closed_by: str,
    now: datetime,
    numerators: Mapping[UUID, int] | None = None,
) -> Discrepancy:
    """The operator's ruling: the lower count, the higher (the gateway's), or numbers of his own between the two.

    `numerators` says, by the id of disputed usage, what is to be billed of it; what is not named settles at the lower.
    What a ruling releases is charged by the next settlement run. Raises NotFound, DiscrepancyClosed, InvalidInput
    (field ruling, reason, numerators).
    """
    if ruling not in (Ruling.LOWER, Ruling.HIGHER, Ruling.NUMBERS):
        raise InvalidInput("must be lower, higher or numbers", field="ruling")
    if (ruling == Ruling.NUMBERS) != bool(numerators):
        raise InvalidInput("belong to the ruling numbers, and to no other", field="numerators")
    return _close(
        discrepancy_id,
        status=Status.RESOLVED,
        ruling=Ruling(ruling),
        reason=reason,
        closed_by=closed_by,
        now=now,
        numerators=numerators or {},
    )


def close_overdue_discrepancies(*, now: datetime) -> int:
    """Those that nobody ruled on within ten days close at the lower count. Returns how many."""
    overdue = Discrepancy.objects.filter(status=Status.OPEN, created_at__lte=now - RULED_WITHIN)
    closed = 0
    for discrepancy_id in list(overdue.order_by("created_at", "pk").values_list("pk", flat=True)):
        try:
            _close(
                discrepancy_id,
                status=Status.RESOLVED,
                ruling=Ruling.LOWER,
                reason=f"No ruling within {RULED_WITHIN.days} days.",
                closed_by="reconciliation",
                now=now,
            )
        except DiscrepancyClosed:
            continue  # Somebody ruled between the two statements.
        closed += 1
    return closed


@transaction.atomic
def _close(
    discrepancy_id: UUID,
    *,
    status: Discrepancy.Status,
    ruling: Discrepancy.Ruling,
    reason: str,
    closed_by: str,
    now: datetime,
    numerators: Mapping[UUID, int] | None = None,
) -> Discrepancy:
    reason = reason.strip()
    if not 1 <= len(reason) <= MAX_REASON_CHARACTERS or "\0" in reason:
        raise InvalidInput(f"must have 1 to {MAX_REASON_CHARACTERS} characters", field="reason")
    discrepancy = Discrepancy.objects.select_for_update().filter(pk=discrepancy_id).first()
    if discrepancy is None:
        raise NotFound("There is no such discrepancy.")
    if discrepancy.status != Status.OPEN:
        raise DiscrepancyClosed("The discrepancy was closed before; its ruling stands.")
    rows = list(discrepancy.usage.select_for_update().order_by("pk"))
    for row in rows:
        billed = _billed(row, ruling, numerators or {})
        DisputedUsage.objects.filter(pk=row.pk).update(withheld_numerator=row.gateway_numerator - billed)
    if unknown := (numerators or {}).keys() - {row.pk for row in rows}:
        raise InvalidInput(f"{min(unknown)} is no usage of this discrepancy", field="numerators")
    discrepancy.status, discrepancy.ruling = status, ruling
    discrepancy.reason, discrepancy.closed_by, discrepancy.closed_at = reason, closed_by, now
    discrepancy.save(update_fields=["status", "ruling", "reason", "closed_by", "closed_at"])
    if ruling == Ruling.HIGHER and discrepancy.kind == Kind.COUNTS:
        # The provider was right: the period counts as reconciled in what is published about him.
        Reconciliation.objects.filter(
            host_id=discrepancy.host_id, settlement_start=discrepancy.settlement_start
        ).update(outcome=Reconciliation.Outcome.AGREED)
    return discrepancy


def _billed(row: DisputedUsage, ruling: Discrepancy.Ruling, numerators: Mapping[UUID, int]) -> int:
    if ruling in (Ruling.HIGHER, Ruling.AGREED):
        return row.gateway_numerator
    if ruling == Ruling.NUMBERS and row.pk in numerators:
        billed = numerators[row.pk]
        if not row.lower_numerator <= billed <= row.gateway_numerator:
            raise InvalidInput(
                f"of {row.pk} must lie between {row.lower_numerator} and {row.gateway_numerator}",
                field="numerators",
            )
        return billed
    return row.lower_numerator
