"""Everything that writes organizations, people, memberships, keys and the audit trail."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import Q

from marketplace.accounts import keys
from marketplace.accounts.models import (
    ApiKey,
    AuditEntry,
    Membership,
    Organization,
    OrganizationRole,
    TaxIdentity,
    User,
)
from marketplace.accounts.scopes import scopes_allowed
from marketplace.accounts.tax_numbers import can_be_tax_number
from marketplace.errors import Conflict, Forbidden, InvalidInput, NotFound, constraint_of

OPERATOR_NAME: Final = "Operator"
KEY_USE_RECORDED_EVERY: Final = timedelta(minutes=1)
LEGAL_FIELDS: Final = ("legal_name", "address", "country", "region", "tax_number")
_REGION: Final = re.compile(r"[A-Z]{2}-[A-Z0-9]{1,3}")


@dataclass(frozen=True)
class Actor:
    """Who did it: a `user`, an `api_key`, a `host` or the `system` itself, and from which address."""

    kind: str
    id: UUID | None
    ip: str | None = None


SYSTEM: Final = Actor("system", None)


class OperatorExists(Conflict):
    """A market has one operator: its books name one organization for fees, tax and the processor's money."""

    code = "operator_exists"


class PastDue(Forbidden):
    """The organization owes too much for too long: it may pay, and not buy."""

    code = "past_due"
    http_status = 402
    title = "Payment is overdue"


class LastOwner(Conflict):
    """An organization keeps at least one person who may manage it."""

    code = "last_owner"


class ScopeNotAllowed(Forbidden):
    """A key never gets more than its organization's roles, or than the key that makes it."""

    code = "scope_not_allowed"


def create_organization(
    *, name: str, roles: Sequence[str], now: datetime, actor: Actor = SYSTEM, tax_ppm: int = 0
) -> Organization:
    """Raises InvalidInput (name, roles, tax_ppm), Conflict for a taken name, OperatorExists for a second operator."""
    name = _text(name, field="name", least=1, most=200)
    unknown = [role for role in roles if role not in OrganizationRole.values]
    if unknown or not roles or len(set(roles)) != len(roles):
        known = ", ".join(OrganizationRole.values)
        raise InvalidInput(f"roles must be one or more of {known}, each once", field="roles")
    if not 0 <= tax_ppm <= 1_000_000:
        raise InvalidInput("tax_ppm must be between 0 and 1000000", field="tax_ppm")
    try:
        with transaction.atomic():
            organization = Organization.objects.create(
                name=name, roles=list(roles), own_tax_ppm=tax_ppm, tax_ppm=tax_ppm, created_at=now
            )
            record_audit(
                organization_id=organization.id,
                actor=actor,
                action="organization.created",
                object_kind="organization",
                object_id=organization.id,
                detail={"name": name, "roles": list(roles)},
                now=now,
            )
    except IntegrityError as error:
        if constraint_of(error) == "accounts_organization_one_operator":
            raise OperatorExists("this market has an operator already", field="roles") from error
        if constraint_of(error) == "accounts_organization_name_unique":
            raise Conflict("an organization of this name exists already", field="name") from error
        raise
    return organization


@transaction.atomic
def ensure_operator(*, now: datetime) -> Organization:
    """The market's operator, made now where there is none. Safe to call from several processes at once."""
    found = _operator()
    if found is not None:
        return found
    try:
        return create_organization(name=OPERATOR_NAME, roles=[OrganizationRole.OPERATOR], now=now)
    except Conflict:
        # Made meanwhile by another process. Otherwise the name is somebody else's, and that is for a person to solve.
        made_meanwhile = _operator()
        if made_meanwhile is None:
            raise
        return made_meanwhile


@transaction.atomic
def update_organization(
    *, organization_id: UUID, changes: Mapping[str, str], now: datetime, actor: Actor
) -> Organization:
    """Change what documents say about the organization: legal_name, address, country, region, tax_number.

    A region (ISO 3166-2) goes with its country. Another country, region or number counts for what is bought from now
    on; a number is verified for one country only.
    """
    assert set(changes) <= set(LEGAL_FIELDS), "only the legal fields change here"
    organization = _locked_organization(organization_id)
    before = identity_of(organization)
    if "country" in changes and changes["country"] and not _is_country(changes["country"]):
        raise InvalidInput("country must be two capital letters (ISO 3166-1)", field="country")
    limits = {"legal_name": 200, "address": 1000, "country": 2, "region": 6, "tax_number": 64}
    for field, value in changes.items():
        setattr(organization, field, _text(value, field=field, least=0, most=limits[field]))
    number, country = organization.tax_number, organization.country
    if organization.region and not organization.region.startswith(f"{country}-"):
        if "region" in changes:
            raise InvalidInput(f"must be of the country {country or '(none given)'}", field="region")
        organization.region = ""
    if organization.region and not _REGION.fullmatch(organization.region):
        raise InvalidInput("must be a code after ISO 3166-2, such as US-NY", field="region")
    if {"tax_number", "country"} & set(changes) and number and not can_be_tax_number(number, country):
        form = f"the form of tax numbers in {country}" if country else "the form of a tax number"
        raise InvalidInput(f"{number!r} does not have {form}", field="tax_number")
    if (number, country) != (before.tax_number, before.country):
        organization.tax_number_verified_at = None
    if (number, country, organization.region) != (before.tax_number, before.country, before.region):
        if not organization.tax_identities.exists():
            before.valid_from, before.created_at = organization.created_at, now
            before.save(force_insert=True)
        made = identity_of(organization)
        made.valid_from = made.created_at = now
        made.save(force_insert=True)
    organization.save(update_fields=[*changes, "region", "tax_number_verified_at"])
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="organization.updated",
        object_kind="organization",
        object_id=organization_id,
        detail={"fields": sorted(changes)},
        now=now,
    )
    return organization


def identity_of(organization: Organization) -> TaxIdentity:
    """What the organization is taxed as now, unsaved and without its time."""
    return TaxIdentity(
        organization=organization,
        country=organization.country,
        region=organization.region,
        tax_number=organization.tax_number,
        is_verified=organization.tax_number_verified_at is not None,
    )


@transaction.atomic
def verify_tax_number(*, organization_id: UUID, tax_number: str, now: datetime, actor: Actor) -> Organization:
    """The operator has seen that the number is this organization's, since it has had it. Again changes nothing.

    Raises NotFound, Conflict (tax_number) where the organization has another number by now.
    """
    organization = _locked_organization(organization_id)
    if not organization.tax_number or organization.tax_number != tax_number:
        raise Conflict("it has another tax number now: look at that one", field="tax_number")
    if organization.tax_number_verified_at is not None:
        return organization
    organization.tax_number_verified_at = now
    organization.save(update_fields=["tax_number_verified_at"])
    last = organization.tax_identities.order_by("valid_from", "id").last()
    if last is not None:
        made = identity_of(organization)
        made.valid_from, made.created_at = last.valid_from, now
        made.save(force_insert=True)
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="organization.tax_number_verified",
        object_kind="organization",
        object_id=organization_id,
        detail={"tax_number": tax_number},
        now=now,
    )
    return organization


def check_may_buy(organization: Organization) -> None:
    """Raises PastDue while an invoice of the organization is overdue beyond the market's patience."""
    if organization.status == Organization.Status.PAST_DUE:
        raise PastDue("an invoice is overdue: pay it, then purchases are open again")


@transaction.atomic
def set_past_due(*, organization_id: UUID, is_past_due: bool, now: datetime, actor: Actor) -> bool:
    """Close or open purchases; False where it stands so already, or is suspended for another reason."""
    states = [Organization.Status.ACTIVE, Organization.Status.PAST_DUE]
    before, after = states if is_past_due else reversed(states)
    rows = Organization.objects.filter(pk=organization_id, status=before)
    if not rows.update(status=after):
        return False
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action=f"organization.{after.value}",
        object_kind="organization",
        object_id=organization_id,
        now=now,
    )
    return True


def create_user(*, email: str, password: str, name: str, now: datetime) -> User:
    """A person who can sign in. Raises InvalidInput (email, password, name), Conflict for a known address."""
    return _saved_user(_checked_user(email=email, password=password, name=name, now=now))


def _checked_user(*, email: str, password: str, name: str, now: datetime) -> User:
    """Not stored yet. Raises InvalidInput."""
    email = _text(email, field="email", least=3, most=254).lower()
    try:
        validate_email(email)
    except ValidationError as error:
        raise InvalidInput("email must be an e-mail address", field="email") from error
    user = User(email=email, name=_text(name, field="name", least=0, most=200), created_at=now)
    if len(password) > 1000:
        raise InvalidInput("password must have at most 1000 characters", field="password")
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise InvalidInput(" ".join(error.messages), field="password") from error
    user.set_password(password)
    return user


def _saved_user(user: User) -> User:
    """Raises Conflict for a known address."""
    try:
        with transaction.atomic():
            user.save(force_insert=True)
    except IntegrityError as error:
        # The column and the expression over it are both unique; whichever index PostgreSQL looks at first.
        raise Conflict("somebody signs in with this address already", field="email") from error
    return user


def add_member(*, organization_id: UUID, user_id: UUID, role: str, now: datetime, actor: Actor) -> Membership:
    """Raises InvalidInput (role), NotFound (user), Conflict when the person is a member already."""
    if role not in Membership.Role.values:
        raise InvalidInput(f"role must be one of {', '.join(Membership.Role.values)}", field="role")
    if not User.objects.filter(pk=user_id).exists():
        raise NotFound("no such person", field="user_id")
    try:
        with transaction.atomic():
            _locked_organization(organization_id)
            membership = Membership.objects.create(
                organization_id=organization_id, user_id=user_id, role=role, created_at=now
            )
            record_audit(
                organization_id=organization_id,
                actor=actor,
                action="member.added",
                object_kind="membership",
                object_id=membership.id,
                detail={"user_id": str(user_id), "role": role},
                now=now,
            )
    except IntegrityError as error:
        if constraint_of(error) != "accounts_membership_unique":
            raise
        raise Conflict("this person is a member already", field="email") from error
    return membership


@transaction.atomic
def add_person(
    *,
    organization_id: UUID,
    email: str,
    name: str,
    role: str,
    initial_password: str,
    now: datetime,
    actor: Actor,
) -> Membership:
    """Make somebody a member by e-mail address; `name` and `initial_password` count only for a new person.

    A person who signs in already keeps his own, so the answer does not tell whether the address was known.
    """
    # Checked and hashed for a known address too: neither a refusal nor the time it takes tells which it is.
    given = _checked_user(email=email, password=initial_password, name=name, now=now)
    user = User.objects.filter(email=given.email).first() or _saved_user(given)
    return add_member(organization_id=organization_id, user_id=user.id, role=role, now=now, actor=actor)


@transaction.atomic
def remove_member(*, organization_id: UUID, membership_id: UUID, now: datetime, actor: Actor) -> None:
    """Raises NotFound, LastOwner."""
    # The organization's row is the lock: two owners removing each other at once would leave none.
    _locked_organization(organization_id)
    members = Membership.objects.filter(organization_id=organization_id)
    membership = members.filter(pk=membership_id).first()
    if membership is None:
        raise NotFound("no such member")
    is_owner = membership.role == Membership.Role.OWNER
    if is_owner and members.filter(role=Membership.Role.OWNER).count() == 1:
        raise LastOwner("the last owner cannot be removed; make somebody else owner first")
    membership.delete()
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="member.removed",
        object_kind="membership",
        object_id=membership_id,
        detail={"user_id": str(membership.user_id), "role": membership.role},
        now=now,
    )


@transaction.atomic
def create_api_key(
    *,
    organization_id: UUID,
    label: str,
    scopes: Sequence[str],
    project: str = "",
    expires_at: datetime | None = None,
    default_contract_id: UUID | None = None,
    within_scopes: Collection[str] | None = None,
    now: datetime,
    actor: Actor,
) -> tuple[ApiKey, str]:
    """The key's row and its text `ty_<key_id>_<secret>`, which exists nowhere else and is shown once.

    `within_scopes` are those of the key that asks, if one does: no key makes a stronger one.
    Raises InvalidInput (label, project, scopes, expires_at), ScopeNotAllowed, NotFound.
    """
    organization = _locked_organization(organization_id)
    allowed = scopes_allowed(organization.roles)
    if not scopes or len(set(scopes)) != len(scopes):
        raise InvalidInput("scopes must name at least one scope, each once", field="scopes")
    for scope in scopes:
        if scope not in allowed or (within_scopes is not None and scope not in within_scopes):
            raise ScopeNotAllowed(f"scope {scope!r} cannot be given to this key", field="scopes")
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("expires_at must lie in the future", field="expires_at")
    presented, text = keys.new_key()
    api_key = ApiKey.objects.create(
        organization=organization,
        key_id=presented.key_id,
        secret_sha256=presented.secret_sha256,
        label=_text(label, field="label", least=0, most=100),
        project=_text(project, field="project", least=0, most=100),
        scopes=list(scopes),
        default_contract_id=default_contract_id,
        created_at=now,
        expires_at=expires_at,
    )
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="api_key.created",
        object_kind="api_key",
        object_id=api_key.id,
        detail={"key_id": api_key.key_id, "label": api_key.label, "scopes": list(scopes)},
        now=now,
    )
    return api_key, text


@transaction.atomic
def revoke_api_key(*, organization_id: UUID, api_key_id: UUID, now: datetime, actor: Actor) -> ApiKey:
    """Final, and done twice it is done once. Raises NotFound."""
    api_key = (
        ApiKey.objects.select_for_update().filter(organization_id=organization_id, pk=api_key_id).first()
    )
    if api_key is None:
        raise NotFound("no such API key")
    if api_key.revoked_at is None:
        api_key.revoked_at = now
        api_key.save(update_fields=["revoked_at"])
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="api_key.revoked",
            object_kind="api_key",
            object_id=api_key_id,
            detail={"key_id": api_key.key_id},
            now=now,
        )
    return api_key


def record_key_use(*, api_key: ApiKey, now: datetime) -> None:
    """Note that the key was used, at most once a minute: a busy key must not write a row per request."""
    stale_before = now - KEY_USE_RECORDED_EVERY
    if api_key.last_used_at is not None and api_key.last_used_at > stale_before:
        return
    unnoted = Q(last_used_at__isnull=True) | Q(last_used_at__lte=stale_before)
    ApiKey.objects.filter(unnoted, pk=api_key.pk).update(last_used_at=now)


def record_audit(
    *,
    organization_id: UUID | None,
    actor: Actor,
    action: str,
    object_kind: str,
    object_id: UUID | None,
    detail: Mapping[str, Any] | None = None,
    now: datetime,
) -> None:
    """Append one entry, in the caller's transaction: what is not committed was not done. Never pass a secret."""
    AuditEntry.objects.create(
        organization_id=organization_id,
        actor_kind=actor.kind,
        actor_id=actor.id,
        action=action,
        object_kind=object_kind,
        object_id=object_id,
        detail=dict(detail or {}),
        ip=actor.ip,
        created_at=now,
    )


def _operator() -> Organization | None:
    return Organization.objects.filter(roles__contains=[OrganizationRole.OPERATOR]).first()


def _locked_organization(organization_id: UUID) -> Organization:
    # NO KEY: foreign keys elsewhere point at this row and must not wait for us.
    found = Organization.objects.select_for_update(no_key=True).filter(pk=organization_id).first()
    if found is None:
        raise NotFound("no such organization")
    return found


def _text(value: str, *, field: str, least: int, most: int) -> str:
    value = value.strip()
    if not least <= len(value) <= most:
        raise InvalidInput(f"{field} must have {least} to {most} characters", field=field)
    # PostgreSQL stores neither NUL nor half a surrogate pair.
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"{field} has a character that is not text", field=field)
    return value


def _is_country(value: str) -> bool:
    return len(value) == 2 and value.isascii() and value.isalpha() and value.isupper()
