"""Organizations, their people, their API keys and the trail of who did what."""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q, Value
from django.db.models.functions import Concat, Lower

from marketplace.accounts.clock_models import OrganizationClock
from marketplace.ids import uuid7

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Membership",
    "Organization",
    "OrganizationClock",
    "OrganizationRole",
    "User",
    "UserManager",
]


class UserManager(BaseUserManager["User"]):
    def get_by_natural_key(self, username: str | None) -> User:
        return self.get(email__iexact=username or "")


class User(AbstractBaseUser):
    """A person who signs in to the portal; what they may do is said by their memberships."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.EmailField(max_length=254, unique=True)
    name = models.CharField(max_length=200, blank=True)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField()

    objects = UserManager()
    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    class Meta:
        constraints = [models.UniqueConstraint(Lower("email"), name="accounts_user_email_unique")]


class OrganizationRole(models.TextChoices):
    BUYER = "buyer"
    PROVIDER = "provider"
    OPERATOR = "operator"


class Organization(models.Model):
    """The tenant. `own_tax_ppm` is the tax on what it buys, in millionths, where no rule of its country says another;
    `tax_ppm` is what holds are grossed up by now, by the rules or its own.
    """

    class Status(models.TextChoices):
        ACTIVE = "active"
        # Owes the market money for too long: may read, pay and sell, and not buy.
        PAST_DUE = "past_due"
        SUSPENDED = "suspended"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=200)
    roles = ArrayField(models.CharField(max_length=16, choices=OrganizationRole.choices))
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.ACTIVE)
    legal_name = models.CharField(max_length=200, blank=True)
    address = models.TextField(max_length=1000, blank=True)
    country = models.CharField(max_length=2, blank=True)
    # A part of the country with taxes of its own, after ISO 3166-2: US-NY, CA-QC.
    region = models.CharField(max_length=6, blank=True, db_default="")
    tax_number = models.CharField(max_length=64, blank=True)
    # When the operator saw that the number is this organization's; a number that anybody can type proves nothing.
    tax_number_verified_at = models.DateTimeField(null=True, blank=True)
    own_tax_ppm = models.BigIntegerField(default=0, db_default=0)
    tax_ppm = models.BigIntegerField(default=0)
    # What pays for on-demand usage: the balance, or (`arrears`) the credit line.
    on_demand_payment = models.CharField(
        max_length=8,
        choices=[("prepaid", "Prepaid"), ("arrears", "Arrears")],
        default="prepaid",
        db_default="prepaid",
    )
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(Lower("name"), name="accounts_organization_name_unique"),
            models.CheckConstraint(
                condition=Q(roles__contained_by=OrganizationRole.values) & Q(roles__len__gt=0),
                name="accounts_organization_roles_known",
            ),
            models.CheckConstraint(
                condition=Q(tax_ppm__gte=0) & Q(tax_ppm__lte=1_000_000),
                name="accounts_organization_tax_in_range",
            ),
            models.CheckConstraint(
                condition=Q(own_tax_ppm__gte=0) & Q(own_tax_ppm__lte=1_000_000),
                name="accounts_organization_own_tax_in_range",
            ),
            models.CheckConstraint(
                condition=Q(region="")
                | Q(region__startswith=Concat(F("country"), Value("-"))) & ~Q(country=""),
                name="accounts_organization_region_of_country",
            ),
            models.CheckConstraint(
                condition=Q(tax_number_verified_at__isnull=True) | ~Q(tax_number=""),
                name="accounts_organization_verified_number",
            ),
            models.CheckConstraint(
                condition=Q(on_demand_payment__in=["prepaid", "arrears"]),
                name="accounts_organization_on_demand_payment_known",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def has_role(self, role: str) -> bool:
        return role in self.roles


class TaxIdentity(models.Model):
    """Where an organization was taxed, and as what, from an instant on: what is bought is taxed by who bought it.

    Append-only, in the order of `valid_from` and id; the verification of a number is a further row of the same
    instant. An organization without rows has always been what it is.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="tax_identities")
    valid_from = models.DateTimeField()
    country = models.CharField(max_length=2, blank=True)
    region = models.CharField(max_length=6, blank=True)
    tax_number = models.CharField(max_length=64, blank=True)
    is_verified = models.BooleanField()
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["organization", "valid_from"], name="accounts_taxidentity_lookup")]
        constraints = [
            models.CheckConstraint(
                condition=Q(is_verified=False) | ~Q(tax_number=""),
                name="accounts_taxidentity_verified_number",
            ),
        ]


class Membership(models.Model):
    """What a person may do in one organization: owners manage people and keys, members trade, viewers read."""

    class Role(models.TextChoices):
        OWNER = "owner"
        MEMBER = "member"
        VIEWER = "viewer"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "organization"], name="accounts_membership_unique"),
        ]


class ApiKey(models.Model):
    """A credential of an organization, `ty_<key_id>_<secret>`; only the SHA-256 of the secret is kept.

    `default_contract_id` names the contract that pays when a request names none (no key upward: a plain id).
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="api_keys")
    key_id = models.CharField(max_length=16, unique=True)
    secret_sha256 = models.BinaryField(max_length=32)
    label = models.CharField(max_length=100, blank=True)
    project = models.CharField(max_length=100, blank=True)
    scopes = ArrayField(models.CharField(max_length=32))
    default_contract_id = models.UUIDField(null=True, blank=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["organization", "-id"], name="accounts_apikey_by_org")]
        constraints = [
            models.CheckConstraint(
                condition=Q(expires_at__isnull=True) | Q(expires_at__gt=F("created_at")),
                name="accounts_apikey_expires_after_creation",
            ),
        ]


class AuditEntry(models.Model):
    """Who did what to which object, when; append-only by trigger and by grants."""

    class ActorKind(models.TextChoices):
        USER = "user"
        API_KEY = "api_key"
        SYSTEM = "system"
        HOST = "host"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, null=True, related_name="+")
    actor_kind = models.CharField(max_length=16, choices=ActorKind.choices)
    actor_id = models.UUIDField(null=True)
    action = models.CharField(max_length=64)
    object_kind = models.CharField(max_length=64)
    object_id = models.UUIDField(null=True)
    detail = models.JSONField(default=dict)
    ip = models.GenericIPAddressField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["organization", "-id"], name="accounts_audit_by_org")]
        constraints = [
            models.CheckConstraint(condition=~Q(action=""), name="accounts_audit_action_named"),
        ]
