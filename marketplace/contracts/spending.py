"""Spend caps: what owners set, and how much of each is taken. Counted in the hold functions (`sql/spend_caps.sql`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import transaction

from marketplace.accounts.models import ApiKey, OrganizationRole
from marketplace.accounts.selectors import organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts.models import SpendCap, SpendCounter
from marketplace.errors import Forbidden, InvalidInput, NotFound
from marketplace.periods import period_at
from pricing.months import Period, calendar_month

MAX_LIMIT_MICROS: Final = 10**15
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class CapSpent:
    """A cap and what of it is held or spent in the window that `resets_at` ends."""

    cap: SpendCap
    spent_micros: int
    window_start: datetime
    resets_at: datetime

    @property
    def left_micros(self) -> int | None:
        """What may still be held; None where the cap does not bind."""
        limit = self.cap.limit_micros
        return None if limit is None else max(0, limit - self.spent_micros)


def spend_window(period: str, at: datetime) -> Period:
    """The UTC day or calendar month that `at` lies in: what is admitted in it counts in it."""
    if period == SpendCap.Period.DAY:
        return period_at(at, _DAY_S)
    return calendar_month(at)


@transaction.atomic
def set_spend_cap(
    *,
    organization_id: UUID,
    scope: str,
    period: str,
    limit_micros: int | None,
    api_key_id: UUID | None = None,
    project: str = "",
    now: datetime,
    actor: Actor,
) -> SpendCap:
    """Cap what an organization, a project or a key may have held and spent in a day or month; None lifts the cap.

    It binds from the next hold on and counts what is admitted from when it was first set. Below what is spent already
    it refuses what is new and ends nothing that runs. Micros, tax included.
    Raises InvalidInput (scope, period, limit_micros, api_key_id, project), NotFound (api_key_id), Forbidden.
    """
    if not organization(organization_id).has_role(OrganizationRole.BUYER):
        raise Forbidden("only a buyer spends")
    _check(scope=scope, period=period, limit_micros=limit_micros, api_key_id=api_key_id, project=project)
    own = ApiKey.objects.filter(organization_id=organization_id)
    if api_key_id is not None and not own.filter(pk=api_key_id).exists():
        raise NotFound("no such API key", field="api_key_id")
    cap, made = SpendCap.objects.select_for_update(no_key=True).get_or_create(
        organization_id=organization_id,
        scope=scope,
        api_key_id=api_key_id,
        project=project,
        period=period,
        defaults={"limit_micros": limit_micros, "created_at": now, "changed_at": now},
    )
    before = None if made else cap.limit_micros
    if before != limit_micros:
        cap.limit_micros, cap.changed_at = limit_micros, now
        cap.save(update_fields=["limit_micros", "changed_at"])
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="spend_cap.set",
            object_kind="spend_cap",
            object_id=cap.id,
            detail={
                "scope": scope,
                "period": period,
                "api_key_id": str(api_key_id) if api_key_id else None,
                "project": project,
                "before_micros": before,
                "limit_micros": limit_micros,
            },
            now=now,
        )
    return cap


def spent_of(caps: Sequence[SpendCap], *, now: datetime) -> list[CapSpent]:
    """What is taken of each cap in its window of now; one query."""
    windows = {cap.id: spend_window(cap.period, now) for cap in caps}
    starts = {window.start for window in windows.values()}
    rows = SpendCounter.objects.filter(cap_id__in=windows, window_start__in=starts)
    taken = {(row.cap_id, row.window_start): row.spent_micros for row in rows}
    return [
        CapSpent(
            cap, taken.get((cap.id, windows[cap.id].start), 0), windows[cap.id].start, windows[cap.id].end
        )
        for cap in caps
    ]


def _check(
    *, scope: str, period: str, limit_micros: int | None, api_key_id: UUID | None, project: str
) -> None:
    if scope not in SpendCap.Scope.values:
        raise InvalidInput(f"scope must be one of {', '.join(SpendCap.Scope.values)}", field="scope")
    if period not in SpendCap.Period.values:
        raise InvalidInput(f"period must be one of {', '.join(SpendCap.Period.values)}", field="period")
    if limit_micros is not None and not 0 <= limit_micros <= MAX_LIMIT_MICROS:
        raise InvalidInput(
            f"limit_micros must be between 0 and {MAX_LIMIT_MICROS}, or null", field="limit_micros"
        )
    if (api_key_id is not None) != (scope == SpendCap.Scope.API_KEY):
        raise InvalidInput("api_key_id is given for a key's cap, and only there", field="api_key_id")
    if bool(project) != (scope == SpendCap.Scope.PROJECT):
        raise InvalidInput("project is given for a project's cap, and only there", field="project")
    if len(project) > 100 or "\x00" in project or project != project.strip():
        raise InvalidInput("project must be the name that the keys carry", field="project")
