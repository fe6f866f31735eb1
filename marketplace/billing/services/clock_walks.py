"""Test clocks on their way: everything that is due for one organization, at each instant that it is due at.

An advance stops at every such instant, in order, and there does what beat's hints do for everybody at theirs, each part
in its own transactions. Every part can be done again without effect, so a walk that dies is taken up by another worker
at the stop where it died. Between advances the organization is kept at its own time the same way.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import OperationalError, transaction

from marketplace import clock as market_clock
from marketplace.accounts.models import OrganizationClock
from marketplace.accounts.organization_clocks import (
    fail_advance,
    leave_walk,
    move_clock,
    plan_stop,
    take_walk,
)
from marketplace.billing.clock_instants import next_instant, unsettled_months
from marketplace.billing.services.auto_top_ups import top_up_low_balances
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.month_ends import square_month
from marketplace.contracts.clock_ends import give_back_undelivered
from marketplace.contracts.renewing import renew_due
from marketplace.contracts.services import advance_contracts
from marketplace.errors import DomainError
from marketplace.ids import derived_id, uuid7
from marketplace.ledger.grants import expire_grants
from marketplace.webhooks.services import deliver_now, record_event

logger = logging.getLogger(__name__)

# How long one call walks, so that a worker has others' hints to take too. The next hint goes on.
BUDGET: Final = timedelta(seconds=30)
_GRANTS_AT_ONCE: Final = 1_000
Status = OrganizationClock.Status


def walk_clocks(*, now: datetime) -> int:
    """Take every clock that is advancing, and that no other worker has, as far as time allows; how many arrived.

    `now` is real time.
    """
    walking = OrganizationClock.objects.filter(status=Status.ADVANCING).order_by("id")
    deadline = market_clock.wall_now() + BUDGET
    return sum(
        walk_clock(clock_id=clock_id, now=now, deadline=deadline)
        for clock_id in list(walking.values_list("id", flat=True))
    )


def walk_clock(*, clock_id: UUID, now: datetime, deadline: datetime, stops: int | None = None) -> bool:
    """Take one clock from stop to stop until it has arrived or fails, the wall clock passes `deadline`, or after so
    many stops.

    True when it has arrived. Outside of any transaction: each stop commits what it does.
    """
    worker_id, made = uuid7(), 0
    try:
        while stops is None or made < stops:
            wall_now = market_clock.wall_now()
            taken = take_walk(clock_id, worker_id=worker_id, wall_now=wall_now)
            if taken is None or taken.status != Status.ADVANCING or wall_now > deadline:
                return False
            arrived = _step(taken, worker_id=worker_id, now=now)
            if arrived is not None:
                return arrived
            made += 1
        return False
    finally:
        leave_walk(clock_id, worker_id=worker_id)


def keep_clocks(*, now: datetime) -> None:
    """Do what has become due at their own time for organizations whose clocks stand; `now` is real time."""
    standing = OrganizationClock.objects.exclude(status=Status.ADVANCING).order_by("id")
    for clock_id in list(standing.values_list("id", flat=True)):
        worker_id = uuid7()
        taken = take_walk(clock_id, worker_id=worker_id, wall_now=market_clock.wall_now())
        if taken is None:
            continue
        try:
            if taken.status != Status.ADVANCING:
                do_what_is_due(organization_id=taken.organization_id, at=max(now, taken.now_at), now=now)
        except Exception:
            # One organization that always fails must not keep the others waiting.
            logger.exception("a test clock was not kept", extra={"clock_id": str(clock_id)})
        finally:
            leave_walk(clock_id, worker_id=worker_id)


def do_what_is_due(*, organization_id: UUID, at: datetime, now: datetime) -> None:
    """Everything that is due for one organization at its own time `at`; `now` is real time. Again: nothing more."""
    advance_contracts(now=at, organization_id=organization_id)
    give_back_undelivered(organization_id=organization_id, now=now, own_now=at)
    top_up_low_balances(now=at, organization_id=organization_id)
    charge_committed_months(now=at, organization_id=organization_id, real_now=now)
    if top_up_low_balances(now=at, organization_id=organization_id):
        charge_committed_months(now=at, organization_id=organization_id, real_now=now)
    renew_due(now=at, organization_id=organization_id, real_now=now)
    while expire_grants(now=at, limit=_GRANTS_AT_ONCE, organization_id=organization_id) == _GRANTS_AT_ONCE:
        pass
    _square_up(organization_id, at, now)
    issue_due_documents(now=at, organization_id=organization_id)
    deliver_now(organization_id=organization_id, now=now)


def _square_up(organization_id: UUID, at: datetime, now: datetime) -> None:
    """Months whose last settlement period is over by the organization's time and still to come in real time.

    Nobody can have used anything of a period that has not come, so it counts as settled and empty. What is real past
    the ordinary settlement does, which waits for meters; and a month with usage that waits for it waits too.
    """
    for entitlement_id, due_at in list(unsettled_months(organization_id)):
        if now < due_at <= at:
            square_month(entitlement_id=entitlement_id, fee_ppm=settings.MARKET_FEE_PPM, now=at)


def _step(clock: OrganizationClock, *, worker_id: UUID, now: datetime) -> bool | None:
    """Do what is due where the clock stands, and move it to the next stop; there too where that is its aim.

    True when it has arrived, False when it stopped for good, None to go on.
    """
    assert clock.target_at is not None
    organization_id, at = clock.organization_id, clock.stop_at or clock.now_at
    try:
        if clock.stop_at is None:
            if clock.now_at == clock.from_at:
                do_what_is_due(organization_id=organization_id, at=at, now=now)
            at = next_instant(organization_id, after=clock.now_at, until=clock.target_at)
            if not plan_stop(clock, at=at, worker_id=worker_id):
                return False
        do_what_is_due(organization_id=organization_id, at=at, now=now)
    except OperationalError:
        # The database's matter, not the organization's: another call goes on from here.
        raise
    except Exception as error:
        logger.exception("a test clock cannot go on", extra={"clock_id": str(clock.pk)})
        reason = f"{error.code}: {error.detail}" if isinstance(error, DomainError) else "internal error"
        with transaction.atomic():
            if fail_advance(clock, reason=f"at {at.isoformat()}: {reason}", worker_id=worker_id):
                _tell(clock, Status.FAILED, clock.now_at)
        deliver_now(organization_id=organization_id, now=now)
        return False
    with transaction.atomic():
        if not move_clock(clock, to=at, worker_id=worker_id):
            return False
        if at != clock.target_at:
            return None
        _tell(clock, Status.READY, at)
    deliver_now(organization_id=organization_id, now=now)
    return True


def _tell(clock: OrganizationClock, status: str, at: datetime) -> None:
    record_event(
        organization_id=clock.organization_id,
        event_type="test_clock.ready",
        fact_id=derived_id(clock.pk, f"advance:{clock.advances}"),
        data={"status": status, "now_at": at.isoformat().replace("+00:00", "Z")},
        now=at,
    )
