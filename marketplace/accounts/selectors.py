"""Reads of organizations, people and keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime
from uuid import UUID

from django.db.models import QuerySet

from marketplace.accounts import keys
from marketplace.accounts.models import ApiKey, AuditEntry, Membership, Organization, OrganizationRole, User
from marketplace.errors import NotFound


def find_api_key(presented: str, now: datetime) -> ApiKey | None:
    """The key that this text proves, with its organization; one indexed query.

    Unknown, wrong, expired and revoked are one answer, None, after the same work: nobody learns which key ids exist.
    """
    parsed = keys.parse(presented)
    if parsed is None:
        return None
    api_key = ApiKey.objects.select_related("organization").filter(key_id=parsed.key_id).first()
    proved = keys.matches(parsed, bytes(api_key.secret_sha256) if api_key else keys.NOBODY)
    if api_key is None or not proved or not is_usable(api_key, now):
        return None
    return api_key


def is_usable(api_key: ApiKey, now: datetime) -> bool:
    return api_key.revoked_at is None and (api_key.expires_at is None or now < api_key.expires_at)


def operator_organization() -> Organization:
    """The organization that runs the market. Raises NotFound while there is none."""
    found = Organization.objects.filter(roles__contains=[OrganizationRole.OPERATOR]).first()
    if found is None:
        raise NotFound("the market has no operator yet: run `manage.py createorganization`")
    return found


def organization(organization_id: UUID) -> Organization:
    """Raises NotFound."""
    found = Organization.objects.filter(pk=organization_id).first()
    if found is None:
        raise NotFound("no such organization")
    return found


def memberships_of(user_id: UUID) -> QuerySet[Membership]:
    """Where this person may act, with the organizations and their test clocks, the oldest membership first."""
    memberships = Membership.objects.filter(user_id=user_id).order_by("id")
    return memberships.select_related("organization__test_clock")


def members_of(organization_id: UUID) -> QuerySet[Membership]:
    return Membership.objects.filter(organization_id=organization_id).select_related("user").order_by("-id")


def api_keys_of(organization_id: UUID) -> QuerySet[ApiKey]:
    return ApiKey.objects.filter(organization_id=organization_id).order_by("-id")


def audit_of(organization_id: UUID) -> QuerySet[AuditEntry]:
    return AuditEntry.objects.filter(organization_id=organization_id).order_by("-id")


def all_organizations() -> QuerySet[Organization]:
    """Every organization, newest first: for the operator."""
    return Organization.objects.order_by("-id")


def trail_of(kinds: Collection[str], *, object_ids: Collection[UUID] | None = None) -> QuerySet[AuditEntry]:
    """What was done to objects of these kinds, or to these objects, newest first, of every organization: for the
    operator."""
    rows = AuditEntry.objects.filter(object_kind__in=kinds).select_related("organization").order_by("-id")
    return rows if object_ids is None else rows.filter(object_id__in=object_ids)


def names_of_actors(entries: Iterable[AuditEntry]) -> dict[UUID, str]:
    """Who they were: people by e-mail, API keys by their labels. Two queries, however many."""
    ids: dict[str, set[UUID]] = defaultdict(set)
    for entry in entries:
        if entry.actor_id is not None:
            ids[entry.actor_kind].add(entry.actor_id)
    people = User.objects.filter(id__in=ids[AuditEntry.ActorKind.USER]).values_list("id", "email")
    labels = ApiKey.objects.filter(id__in=ids[AuditEntry.ActorKind.API_KEY]).values_list(
        "id", "label", "key_id"
    )
    return dict(people) | {id_: label or f"ty_{key_id}" for id_, label, key_id in labels}


def unverified_tax_numbers() -> QuerySet[Organization]:
    """Who has given a tax number that the operator has not looked at, the longest here first."""
    return (
        Organization.objects.filter(tax_number_verified_at__isnull=True).exclude(tax_number="").order_by("id")
    )
