"""What fills many standing bids' holds up, under the spend caps of their buyers: a constant number of statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import Q

from marketplace.accounts.models import ApiKey
from marketplace.accounts.services import Actor
from marketplace.contracts.models import PurchaseSpend, SpendCap, SpendCounter
from marketplace.contracts.spending import spend_window
from marketplace.ids import uuid7

_ADD: Final = """
UPDATE contracts_spendcounter AS s SET spent_micros = s.spent_micros + n.micros
FROM unnest(%s::uuid[], %s::bigint[]) AS n (id, micros) WHERE s.id = n.id
"""


class Refill(NamedTuple):
    """So much more, tax included, is about to be held for a bid of this organization that `actor` placed or changed."""

    ledger_hold_id: UUID
    organization_id: UUID
    amount_micros: int
    actor: Actor


@dataclass(slots=True)
class _Room:
    counter_id: UUID
    limit_micros: int
    spent_micros: int


def capped_organizations(organization_ids: Collection[UUID]) -> set[UUID]:
    """Those of them that a cap binds: few."""
    bound = SpendCap.objects.filter(organization_id__in=list(organization_ids), limit_micros__isnull=False)
    return set(bound.order_by().values_list("organization_id", flat=True))


def count_refills(refills: Sequence[Refill], *, now: datetime) -> tuple[dict[UUID, UUID], set[UUID]]:
    """Count each of them that fits under all of its caps, in this order, in the windows of `now`, which is real.

    By hold what was counted (`uncount_refills` takes it back); and the holds whose refill does not fit. Before the
    ledger, in the transaction that raises the holds; the counters of their organizations are locked until it ends, in
    the order of the caps' ids.
    """
    assert connection.in_atomic_block, "counted with the hold, or not at all"
    rooms = _rooms({refill.organization_id for refill in refills}, now)
    capped = {organization for organization, _, _ in rooms}
    refills = [refill for refill in refills if refill.organization_id in capped]
    keys = [refill.actor.id for refill in refills if refill.actor.kind == "api_key" and refill.actor.id]
    projects = dict(ApiKey.objects.filter(pk__in=keys).values_list("id", "project"))
    rows: list[PurchaseSpend] = []
    refused: set[UUID] = set()
    added: dict[UUID, int] = defaultdict(int)
    for refill in refills:
        mine = list(_of(refill, rooms, projects))
        if any(room.spent_micros + refill.amount_micros > room.limit_micros for room in mine):
            refused.add(refill.ledger_hold_id)
            continue
        for room in mine:
            room.spent_micros += refill.amount_micros
            added[room.counter_id] += refill.amount_micros
        if mine:
            rows.append(
                PurchaseSpend(
                    id=uuid7(now),
                    ledger_hold_id=refill.ledger_hold_id,
                    counter_ids=[room.counter_id for room in mine],
                    amount_micros=refill.amount_micros,
                    created_at=now,
                )
            )
    PurchaseSpend.objects.bulk_create(rows)
    _add(added)
    return {row.ledger_hold_id: row.id for row in rows}, refused


def uncount_refills(purchase_ids: Collection[UUID]) -> None:
    """What `count_refills` has just counted in this transaction is not held after all: as if it had not been."""
    assert connection.in_atomic_block
    if not purchase_ids:
        return
    rows = PurchaseSpend.objects.filter(pk__in=list(purchase_ids))
    back: dict[UUID, int] = defaultdict(int)
    for row in rows:
        for counter_id in row.counter_ids:
            back[counter_id] -= row.amount_micros
    _add(back)
    rows.delete()


def _rooms(organization_ids: Collection[UUID], now: datetime) -> dict[tuple[UUID, str, object], list[_Room]]:
    """What is left now under every cap that binds one of them, by organization, scope and whom it binds; locked."""
    capped = sorted(capped_organizations(organization_ids))
    if not capped:
        return {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT contracts_lock_spend(%s::uuid[], %s)", [capped, now])
    windows = Q()
    for period in SpendCap.Period.values:
        windows |= Q(cap__period=period, window_start=spend_window(period, now).start)
    counters = SpendCounter.objects.filter(
        windows, cap__organization_id__in=capped, cap__limit_micros__isnull=False
    ).select_related("cap")
    rooms: dict[tuple[UUID, str, object], list[_Room]] = defaultdict(list)
    for counter in counters.order_by("cap_id"):
        cap = counter.cap
        assert cap.limit_micros is not None
        whom = {SpendCap.Scope.PROJECT: cap.project, SpendCap.Scope.API_KEY: cap.api_key_id}.get(
            SpendCap.Scope(cap.scope)
        )
        rooms[cap.organization_id, cap.scope, whom].append(
            _Room(counter.id, cap.limit_micros, counter.spent_micros)
        )
    return dict(rooms)


def _of(
    refill: Refill,
    rooms: Mapping[tuple[UUID, str, object], list[_Room]],
    projects: Mapping[UUID, str],
) -> Iterator[_Room]:
    organization_id, actor = refill.organization_id, refill.actor
    yield from rooms.get((organization_id, SpendCap.Scope.ORGANIZATION, None), ())
    if actor.kind == "api_key" and actor.id is not None:
        yield from rooms.get((organization_id, SpendCap.Scope.API_KEY, actor.id), ())
        yield from rooms.get((organization_id, SpendCap.Scope.PROJECT, projects.get(actor.id)), ())


def _add(micros: Mapping[UUID, int]) -> None:
    if micros:
        with connection.cursor() as cursor:
            cursor.execute(_ADD, [list(micros), list(micros.values())])
