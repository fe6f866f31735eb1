"""Purchases under spend caps: of the organization, wherever they are made, and of the key that buys, and its project.

The counters are taken before the money is held and given back before it is released, as the hold functions do it.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models import F, Sum

from marketplace.accounts.services import SYSTEM, Actor
from marketplace.contracts.models import ContractEvent, PurchaseSpend, SpendCounter
from marketplace.contracts.spending import spend_window
from marketplace.errors import DomainError, constraint_of

_SECOND: Final = timedelta(seconds=1)
_SUBJECTS: Final = {
    "organization": "your organization",
    "project": "this API key's project",
    "api_key": "this API key",
}


class SpendCapReached(DomainError):
    """An owner's cap does not leave enough; nothing was bought or held."""

    code = "spend_cap_reached"
    http_status = 402
    title = "A spend cap is reached"


def cap_message(spend_cap: str, *, of_what: str) -> str:
    """Which cap (`scope/period`) refused `of_what`, and when it resets."""
    scope, period = spend_cap.split("/")
    window = "UTC day" if period == "day" else "calendar month (UTC)"
    return (
        f"The spend cap of {_SUBJECTS[scope]} per {window} does not leave enough for {of_what}. "
        f"It resets when the {window} ends; an owner can raise it."
    )


def count_purchase(
    *,
    organization_id: UUID,
    ledger_hold_id: UUID,
    amount_micros: int,
    now: datetime,
    actor: Actor,
    binding: bool = True,
) -> None:
    """Count what this hold may come to, tax included, in the windows of `now`, which is real: once what was counted for
    it before, the rest. Before the hold, in its transaction.

    Under the caps of the organization whoever buys, and under those of the key that buys, and its project. What was
    promised before is not `binding`: it counts and is never refused. Else raises SpendCapReached, which names the cap.
    """
    assert connection.in_atomic_block, "counted with the hold, or not at all"
    sums = PurchaseSpend.objects.filter(ledger_hold_id=ledger_hold_id).aggregate(sum=Sum("amount_micros"))
    missing = amount_micros - (sums["sum"] or 0)
    if missing <= 0:
        return
    api_key_id = actor.id if actor.kind == "api_key" else None
    counters = _take(organization_id, api_key_id, missing, now, binding=binding)
    if counters:
        PurchaseSpend.objects.create(
            ledger_hold_id=ledger_hold_id, counter_ids=counters, amount_micros=missing, created_at=now
        )


def counted_since(ledger_hold_id: UUID) -> datetime | None:
    """When what a hold is for was first counted: before, no cap bound it."""
    rows = PurchaseSpend.objects.filter(ledger_hold_id=ledger_hold_id).order_by("created_at")
    return rows.values_list("created_at", flat=True).first()


def buyer_of(contract_id: UUID) -> Actor:
    """Who bought a committed contract: its later months count under the caps of that key.

    Of a contract of before there was a history nobody knows: it counts under those of the organization.
    """
    bought = ContractEvent.objects.filter(contract_id=contract_id, kind=ContractEvent.Kind.CREATED).first()
    return SYSTEM if bought is None else Actor(bought.actor_kind, bought.actor_id)


def return_purchase(*, ledger_hold_id: UUID, used_micros: int) -> None:
    """The hold is about to be voided, and `used_micros` of what it was for were bought: the rest counts no more.

    Behind the lock of whatever was bought, before the ledger. Again: nothing.
    """
    assert connection.in_atomic_block
    back: dict[UUID, int] = defaultdict(int)
    for row in PurchaseSpend.objects.filter(ledger_hold_id=ledger_hold_id).order_by("id"):
        rest = max(0, row.amount_micros - used_micros)
        used_micros = max(0, used_micros - row.amount_micros)
        if PurchaseSpend.objects.filter(pk=row.pk, returned_micros=0).update(returned_micros=rest):
            for counter_id in row.counter_ids:
                back[counter_id] += rest
    counters = SpendCounter.objects.filter(pk__in=back).order_by("cap_id", "window_start")
    for counter_id in list(counters.values_list("pk", flat=True)):
        SpendCounter.objects.filter(pk=counter_id).update(spent_micros=F("spent_micros") - back[counter_id])


def _take(
    organization_id: UUID, api_key_id: UUID | None, micros: int, now: datetime, *, binding: bool
) -> list[UUID]:
    function = "contracts_take_spend" if binding else "contracts_count_spend"
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}(%s, %s, %s, %s)", [organization_id, api_key_id, micros, now])
            return cursor.fetchone()[0] or []
    except IntegrityError as error:
        if constraint_of(error) != "contracts_spendcounter_within_cap":
            raise
        diagnostics = getattr(error.__cause__, "diag", None)
        spend_cap = str(getattr(diagnostics, "message_detail", ""))
        wait = spend_window(spend_cap.split("/")[1], now).end - now
        raise SpendCapReached(
            cap_message(spend_cap, of_what="this purchase"), retry_after_s=-(-wait // _SECOND)
        ) from error
