"""Test clocks: organizations of a sandbox market whose billing and contract dates run ahead of real time.

Two rules hold everything together. What is due is looked for either among all organizations that keep real time, or for
one that has a clock, at its own time (`keeping`). And whoever acts for an organization on a date of its billing takes
the date from `billing_now`. Holds, auctions, signatures, sessions and usage take theirs from the market's clock and
never ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import Q, QuerySet

from marketplace.accounts.clock_models import OrganizationClock
from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Conflict, DomainError, Forbidden, InvalidInput, NotFound, constraint_of

MOST_AT_ONCE: Final = timedelta(days=366)
MOST_AHEAD: Final = timedelta(days=3 * 366)
# How long a worker that says nothing keeps its walk. The wall clock: a lease is about processes.
LEASE: Final = timedelta(seconds=120)
Status = OrganizationClock.Status
Row = TypeVar("Row", bound=models.Model)


class ClocksNeedSandbox(DomainError):
    """Where money is real, time is too."""

    code = "test_clocks_need_sandbox"
    http_status = 409
    title = "Test clocks need the sandbox"


class ClockAdvancing(Conflict):
    """One advance at a time."""

    code = "test_clock_advancing"


class ClockAhead(Conflict):
    """What has been dated by a clock cannot come back to before it was."""

    code = "test_clock_ahead"


def clock_of(organization_id: UUID) -> OrganizationClock:
    """Raises NotFound where the organization has no clock."""
    found = OrganizationClock.objects.filter(organization_id=organization_id).first()
    if found is None:
        raise NotFound("The organization has no test clock.")
    return found


def billing_now(organization_id: UUID, now: datetime) -> datetime:
    """The organization's billing time: its clock's where that is ahead of `now`, which is real; else `now`."""
    ahead = OrganizationClock.objects.filter(organization_id=organization_id, now_at__gt=now)
    return ahead.values_list("now_at", flat=True).first() or now


def keeping(
    rows: QuerySet[Row], organization_id: UUID | None, *, field: str = "organization_id"
) -> QuerySet[Row]:
    """Rows of this one organization; with None those of every organization that keeps real time, having no clock."""
    if organization_id is not None:
        return rows.filter(**{field: organization_id})
    return rows.exclude(**{f"{field}__in": OrganizationClock.objects.values("organization_id")})


def with_clocks(organization_ids: Sequence[UUID]) -> set[UUID]:
    """Those of them that have a clock, ahead or not."""
    found = OrganizationClock.objects.filter(organization_id__in=organization_ids)
    return set(found.values_list("organization_id", flat=True))


@transaction.atomic
def create_clock(*, organization_id: UUID, now: datetime, actor: Actor) -> OrganizationClock:
    """Give a buyer or provider of a sandbox market a clock that stands at `now`.

    Raises ClocksNeedSandbox, Forbidden for the operator, Conflict where there is one already.
    """
    check_sandbox()
    organization = Organization.objects.select_for_update(no_key=True).get(pk=organization_id)
    if organization.has_role(OrganizationRole.OPERATOR):
        raise Forbidden("The operator issues everybody's documents and keeps real time.")
    try:
        with transaction.atomic():
            made = OrganizationClock.objects.create(
                organization_id=organization_id, now_at=now, created_at=now
            )
    except IntegrityError as error:
        if "organization" not in constraint_of(error):
            raise
        raise Conflict("The organization has a test clock already.") from error
    _audit(made, "test_clock.created", {}, actor=actor, now=now)
    return made


@transaction.atomic
def remove_clock(*, organization_id: UUID, now: datetime, actor: Actor) -> None:
    """Back to real time, where the clock was never ahead of it or real time has come as far (`now` is real).

    Raises NotFound, ClockAdvancing, ClockAhead.
    """
    clock = _locked(organization_id)
    if clock.status == Status.ADVANCING:
        raise ClockAdvancing("The clock is advancing; wait until it is ready.")
    if clock.now_at > now:
        raise ClockAhead(
            "Months are charged and documents dated up to the clock's time; it can be removed when real time is there."
        )
    _audit(clock, "test_clock.removed", {"now_at": clock.now_at.isoformat()}, actor=actor, now=now)
    clock.delete()


@transaction.atomic
def begin_advance(*, organization_id: UUID, to: datetime, now: datetime, actor: Actor) -> OrganizationClock:
    """Ask that the clock go forward to `to`; a worker takes it there. `now` is real.

    From a failed advance on: it goes on from where that stopped. Raises ClocksNeedSandbox, NotFound, ClockAdvancing,
    InvalidInput (`to`: not ahead, more than 366 days at once, or more than 1,098 days ahead of real time).
    """
    check_sandbox()
    clock = _locked(organization_id)
    if clock.status == Status.ADVANCING:
        raise ClockAdvancing("The clock is advancing; wait until it is ready.")
    start = max(clock.now_at, now)
    if to <= start:
        raise InvalidInput(f"must lie after {start.isoformat()}: a clock never goes back", field="to")
    if to > start + MOST_AT_ONCE:
        raise InvalidInput(f"must lie within {MOST_AT_ONCE.days} days of {start.isoformat()}", field="to")
    if to > now + MOST_AHEAD:
        raise InvalidInput(f"must lie within {MOST_AHEAD.days} days of real time", field="to")
    moved = OrganizationClock.objects.filter(pk=clock.pk, status__in=[Status.READY, Status.FAILED]).update(
        status=Status.ADVANCING,
        from_at=start,
        now_at=start,
        target_at=to,
        stop_at=clock.stop_at if clock.stop_at and start < clock.stop_at <= to else None,
        failure="",
        advances=clock.advances + 1,
    )
    assert moved == 1, "the clock's row is locked"
    clock.refresh_from_db()
    _audit(
        clock,
        "test_clock.advanced",
        {"from": start.isoformat(), "to": to.isoformat()},
        actor=actor,
        now=now,
    )
    return clock


def take_walk(clock_id: UUID, *, worker_id: UUID, wall_now: datetime) -> OrganizationClock | None:
    """The clock, kept for this worker for two minutes; None while another one has it. Again: two minutes more."""
    free = Q(worker_id__isnull=True) | Q(worker_id=worker_id) | Q(worker_until__lte=wall_now)
    taken = OrganizationClock.objects.filter(free, pk=clock_id).update(
        worker_id=worker_id, worker_until=wall_now + LEASE
    )
    return OrganizationClock.objects.get(pk=clock_id) if taken else None


def leave_walk(clock_id: UUID, *, worker_id: UUID) -> None:
    OrganizationClock.objects.filter(pk=clock_id, worker_id=worker_id).update(
        worker_id=None, worker_until=None
    )


def plan_stop(clock: OrganizationClock, *, at: datetime, worker_id: UUID) -> bool:
    """Write down where the walk stops next, before anything is done there. False where another worker has it."""
    planned = OrganizationClock.objects.filter(
        pk=clock.pk, status=Status.ADVANCING, worker_id=worker_id, now_at=clock.now_at, stop_at__isnull=True
    ).update(stop_at=at)
    return bool(planned)


def move_clock(clock: OrganizationClock, *, to: datetime, worker_id: UUID) -> bool:
    """One step of an advance is done: the clock stands there, ready where that is its aim. In one statement.

    False where another worker has taken the walk over.
    """
    arrived = to == clock.target_at
    moved = OrganizationClock.objects.filter(
        pk=clock.pk, status=Status.ADVANCING, worker_id=worker_id, now_at=clock.now_at
    ).update(now_at=to, stop_at=None, status=Status.READY if arrived else Status.ADVANCING)
    return bool(moved)


def fail_advance(clock: OrganizationClock, *, reason: str, worker_id: UUID) -> bool:
    """The advance stops where it stands; a further one goes on from there."""
    moved = OrganizationClock.objects.filter(
        pk=clock.pk, status=Status.ADVANCING, worker_id=worker_id, now_at=clock.now_at
    ).update(status=Status.FAILED, failure=reason[:300])
    return bool(moved)


def check_sandbox() -> None:
    """Raises ClocksNeedSandbox."""
    if settings.PAYMENT_PROCESSOR != "sandbox":
        raise ClocksNeedSandbox(
            "Test clocks exist only in a market whose payment processor is the sandbox: elsewhere money is real."
        )


def _locked(organization_id: UUID) -> OrganizationClock:
    found = OrganizationClock.objects.select_for_update().filter(organization_id=organization_id).first()
    if found is None:
        raise NotFound("The organization has no test clock.")
    return found


def _audit(
    clock: OrganizationClock, action: str, detail: dict[str, str], *, actor: Actor, now: datetime
) -> None:
    record_audit(
        organization_id=clock.organization_id,
        actor=actor,
        action=action,
        object_kind="test_clock",
        object_id=clock.pk,
        detail=detail,
        now=now,
    )
