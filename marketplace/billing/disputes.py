"""Discrepancies between meters as each side may see them, and what each side may do about them.

A provider sees his hosts', a buyer those that keep usage of his contracts from being billed, the operator all. Only he
whom the lower count costs something may accept it: the provider. Everything else is the operator's ruling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts.models import Contract
from marketplace.errors import NotFound
from metering import services
from metering.models import Discrepancy, DisputedUsage, RecountBaseline
from pricing.selectors import find_grade
from providers.models import Host


@dataclass(frozen=True, slots=True)
class Seen:
    """A discrepancy as one organization sees it. `evidence` is None where it tells of others' usage, too."""

    discrepancy: Discrepancy
    host_id: UUID | None
    host_name: str
    evidence: Mapping[str, Any] | None
    usage: list[DisputedUsage]
    may_see_contracts: bool

    @property
    def withheld_numerator(self) -> int:
        return sum(row.withheld_numerator for row in self.usage)


def discrepancies_of(organization: Organization) -> QuerySet[Discrepancy]:
    """Newest first."""
    found = Discrepancy.objects.order_by("-pk")
    if organization.has_role(OrganizationRole.OPERATOR):
        return found
    own = Q(pk__in=[])
    if organization.has_role(OrganizationRole.PROVIDER):
        own |= Q(host_id__in=_hosts(organization).values("pk"))
    if organization.has_role(OrganizationRole.BUYER):
        usage = DisputedUsage.objects.filter(
            discrepancy=OuterRef("pk"), contract_id__in=_contracts(organization).values("pk")
        )
        own |= Q(Exists(usage))
    return found.filter(own)


def seen_by(organization: Organization, discrepancies: Iterable[Discrepancy]) -> list[Seen]:
    """These of `discrepancies_of`, each with what of it concerns the organization; in a constant number of queries."""
    found = list(discrepancies)
    operates = organization.has_role(OrganizationRole.OPERATOR)
    of_hosts = Host.objects.filter(pk__in=[one.host_id for one in found])
    names: dict[UUID, str] = {}
    hosts: set[UUID] = set()
    for host_id, name, owner_id in of_hosts.values_list("pk", "name", "provider__organization_id"):
        names[host_id] = name
        if owner_id == organization.id:
            hosts.add(host_id)
    contracts = set(_contracts(organization).values_list("pk", flat=True)) if not operates else set()
    by_discrepancy: dict[UUID, list[DisputedUsage]] = defaultdict(list)
    rows = DisputedUsage.objects.filter(discrepancy__in=found)
    provided = [one.pk for one in found if one.host_id in hosts]
    if not operates:
        rows = rows.filter(Q(contract_id__in=contracts) | Q(discrepancy__in=provided))
    for row in rows.order_by("period_start", "pk"):
        by_discrepancy[row.discrepancy_id].append(row)
    return [
        Seen(
            discrepancy=one,
            host_id=one.host_id if operates or one.host_id in hosts else None,
            host_name=names.get(one.host_id, "") if operates or one.host_id in hosts else "",
            evidence=one.evidence if operates or one.host_id in hosts else None,
            usage=by_discrepancy[one.pk],
            may_see_contracts=operates or one.host_id not in hosts,
        )
        for one in found
    ]


def find_discrepancy(organization: Organization, discrepancy_id: UUID) -> Seen:
    """Raises NotFound, also for one that does not concern the organization."""
    found = discrepancies_of(organization).filter(pk=discrepancy_id).first()
    if found is None:
        raise NotFound("There is no such discrepancy.")
    return seen_by(organization, [found])[0]


@transaction.atomic
def accept(
    *, organization: Organization, discrepancy_id: UUID, reason: str, actor: Actor, now: datetime
) -> Discrepancy:
    """The host's provider lets the lower count stand. Raises NotFound for another's host, Conflict when closed."""
    found = Discrepancy.objects.filter(
        pk=discrepancy_id, host_id__in=_hosts(organization).values("pk")
    ).first()
    if found is None:
        raise NotFound("There is no such discrepancy.")
    closed = services.accept_discrepancy(
        discrepancy_id=discrepancy_id, reason=reason, closed_by="provider", now=now
    )
    _audit(organization, actor, "discrepancy.accepted", closed, now)
    return closed


@transaction.atomic
def resolve(
    *,
    operator: Organization,
    discrepancy_id: UUID,
    ruling: str,
    reason: str,
    actor: Actor,
    now: datetime,
    numerators: Mapping[UUID, int] | None = None,
) -> Discrepancy:
    """The operator's ruling (`metering.disputing`); the next settlement run charges what it frees."""
    closed = services.resolve_discrepancy(
        discrepancy_id=discrepancy_id,
        ruling=ruling,
        reason=reason,
        closed_by="operator",
        numerators=numerators,
        now=now,
    )
    _audit(operator, actor, "discrepancy.resolved", closed, now)
    return closed


@transaction.atomic
def set_recount_baseline(
    *,
    operator: Organization,
    grade_id: UUID,
    baseline_ppm: int,
    reason: str,
    actor: Actor,
    now: datetime,
) -> RecountBaseline:
    """What the operator expects the recount of a grade version's text to come to. Raises NotFound, InvalidInput."""
    if find_grade(grade_id) is None:
        raise NotFound("There is no such grade.", field="grade_id")
    baseline = services.set_recount_baseline(
        grade_id=grade_id, baseline_ppm=baseline_ppm, reason=reason, now=now
    )
    record_audit(
        organization_id=operator.id,
        actor=actor,
        action="recount_baseline.set",
        object_kind="grade",
        object_id=grade_id,
        detail={"baseline_ppm": baseline_ppm, "reason": baseline.reason},
        now=now,
    )
    return baseline


def _audit(organization: Organization, actor: Actor, action: str, closed: Discrepancy, now: datetime) -> None:
    record_audit(
        organization_id=organization.id,
        actor=actor,
        action=action,
        object_kind="discrepancy",
        object_id=closed.pk,
        detail={"ruling": closed.ruling, "reason": closed.reason},
        now=now,
    )


def _hosts(organization: Organization) -> QuerySet[Host]:
    return Host.objects.filter(provider__organization_id=organization.id)


def _contracts(organization: Organization) -> QuerySet[Contract]:
    return Contract.objects.filter(organization_id=organization.id)
