"""Mails about facts: queued in the transaction of the fact, and where they go. Sending is `mailing`'s."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import connection, transaction
from django.db.models import F, QuerySet

from marketplace.accounts.models import Membership, Organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import InvalidInput
from marketplace.ids import derived_id
from marketplace.webhooks.notice_models import Notice, NoticeSettings
from marketplace.webhooks.notice_texts import KINDS, OPTIONAL, mail_of
from marketplace.webhooks.schedule import GIVE_UP_AFTER

if TYPE_CHECKING:
    from marketplace.webhooks.services import Fact

MOST_ADDRESSES: Final = 5
KEPT: Final = timedelta(days=90)
# Several contracts of an organization stop for one cause: one mail says how many.
_TOGETHER: Final = "contract.suspended"


def queue_notices(facts: Sequence[Fact], *, event_type: str, now: datetime) -> None:
    """Mails to the organizations' addresses, in the caller's transaction; none for types that nobody is mailed of.

    The same fact to the same address is queued once. At most three queries, however many facts.
    """
    assert connection.in_atomic_block, "a notice commits with what it tells"
    kind = KINDS.get(event_type)
    if kind is None or not facts:
        return
    told = _grouped(facts) if event_type == _TOGETHER else [(fact, fact.data) for fact in facts]
    organizations = {fact.organization_id for fact, _ in told}
    addresses = addresses_of(organizations, event_type=event_type)
    names = dict(Organization.objects.filter(id__in=organizations).values_list("id", "name"))
    rows = []
    for fact, data in told:
        subject, body = mail_of(
            event_type, data, organization=names[fact.organization_id], portal_url=settings.PORTAL_URL
        )
        rows += [
            Notice(
                id=derived_id(fact.fact_id, f"notice:{event_type}:{fact.organization_id}:{address}"),
                organization_id=fact.organization_id,
                type=event_type,
                address=address,
                subject=subject,
                body=body,
                next_attempt_at=now,
                give_up_at=now + GIVE_UP_AFTER,
                created_at=now,
            )
            for address in addresses.get(fact.organization_id, ())
        ]
    Notice.objects.bulk_create(rows, ignore_conflicts=True)


def addresses_of(organization_ids: Collection[UUID], *, event_type: str) -> dict[UUID, list[str]]:
    """Whom to mail about facts of this type; organizations that turned it off are not in it."""
    kind = KINDS[event_type]
    owners: dict[UUID, list[str]] = defaultdict(list)
    members = Membership.objects.filter(
        organization_id__in=organization_ids, role=Membership.Role.OWNER, user__is_active=True
    )
    for organization_id, email in members.order_by("id").values_list("organization_id", "user__email"):
        owners[organization_id].append(email)
    chosen = dict(owners)
    for own in NoticeSettings.objects.filter(organization_id__in=organization_ids):
        if event_type in own.muted and not kind.is_legal:
            chosen.pop(own.organization_id, None)
        elif own.addresses and not kind.to_owners:
            chosen[own.organization_id] = own.addresses
    return chosen


def mailed_organizations(event_type: str) -> set[UUID]:
    """Those who may be mailed of this type: all with an owner or an address. Empty for types without mails."""
    if event_type not in KINDS:
        return set()
    owned = Membership.objects.filter(role=Membership.Role.OWNER).values_list("organization_id", flat=True)
    with_addresses = NoticeSettings.objects.exclude(addresses=[]).values_list("organization_id", flat=True)
    return {*owned, *with_addresses}


def settings_of(organization_id: UUID) -> NoticeSettings:
    """As they are; unsaved where they were never set."""
    found = NoticeSettings.objects.filter(pk=organization_id).first()
    return found or NoticeSettings(organization_id=organization_id)


@transaction.atomic
def set_notices(
    *,
    organization_id: UUID,
    addresses: Sequence[str],
    muted: Sequence[str],
    now: datetime,
    actor: Actor,
) -> NoticeSettings:
    """Where mail goes from now on (no address: to the owners), and which of the optional notices do not come.

    Raises InvalidInput naming the field.
    """
    for address in addresses:
        try:
            validate_email(address)
        except ValidationError:
            raise InvalidInput(f"{address[:80]!r} is no e-mail address", field="addresses") from None
    if len(set(addresses)) != len(addresses) or len(addresses) > MOST_ADDRESSES:
        raise InvalidInput(f"must be at most {MOST_ADDRESSES} different addresses", field="addresses")
    if any(len(address) > 254 for address in addresses):
        raise InvalidInput("an address has at most 254 characters", field="addresses")
    if not set(muted) <= set(OPTIONAL):
        raise InvalidInput(f"must be among {', '.join(OPTIONAL)}", field="muted")
    made, _ = NoticeSettings.objects.update_or_create(
        organization_id=organization_id,
        defaults={"addresses": list(addresses), "muted": sorted(set(muted)), "changed_at": now},
    )
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="notices.set",
        object_kind="notice_settings",
        object_id=organization_id,
        detail={"addresses": list(addresses), "muted": made.muted},
        now=now,
    )
    return made


def notices_of(organization_id: UUID) -> QuerySet[Notice]:
    return Notice.objects.filter(organization_id=organization_id).order_by("-created_at", "-id")


def mail_now(*, organization_id: UUID, now: datetime) -> int:
    """Let mails that are dated ahead of `now`, which is real, go now: a test clock dates facts, not mails. How many."""
    # What has been touched once lies before its own date: a retry, or the lease of whoever is sending it.
    ahead = Notice.objects.filter(
        organization_id=organization_id,
        status=Notice.Status.PENDING,
        created_at__gt=now,
        next_attempt_at__gte=F("created_at"),
    )
    return ahead.update(next_attempt_at=now, give_up_at=now + GIVE_UP_AFTER)


def forget_old_notices(*, now: datetime, limit: int = 5_000) -> int:
    """Drop mails that ended more than 90 days ago, at most `limit` of them; how many."""
    old = Notice.objects.filter(ended_at__lt=now - KEPT).order_by("ended_at")
    gone, _ = Notice.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:limit])).delete()
    return gone


def _grouped(facts: Iterable[Fact]) -> list[tuple[Fact, Mapping[str, Any]]]:
    """One for each organization: its first fact, with how many there were."""
    by_organization: dict[UUID, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_organization[fact.organization_id].append(fact)
    return [(own[0], {**own[0].data, "contracts": len(own)}) for own in by_organization.values()]
