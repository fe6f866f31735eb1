"""REST of organizations, members, keys and the audit trail.

It stands here and not in accounts because arrows point down: accounts lie below the plumbing that these views need.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.urls import path, re_path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import ApiKey, AuditEntry, Membership, Organization, OrganizationRole
from marketplace.accounts.scopes import Scope, scopes_allowed
from marketplace.accounts.selectors import api_keys_of, audit_of, members_of
from marketplace.accounts.services import (
    LEGAL_FIELDS,
    ScopeNotAllowed,
    add_person,
    create_api_key,
    create_organization,
    remove_member,
    revoke_api_key,
    update_organization,
    verify_tax_number,
)
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    PpmField,
    StrictChoiceField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView, NoSuchView


class OrganizationOut(serializers.ModelSerializer[Organization]):
    class Meta:
        model = Organization
        fields = (
            "id",
            "name",
            "roles",
            "status",
            *LEGAL_FIELDS,
            "tax_number_verified_at",
            "tax_ppm",
            "created_at",
        )


class OrganizationIn(StrictSerializer):
    name = TextField(max_length=200)
    roles = serializers.ListField(
        child=StrictChoiceField(choices=OrganizationRole.choices), min_length=1, max_length=3
    )
    tax_ppm = PpmField(default=0)


class OrganizationChange(StrictSerializer):
    legal_name = TextField(max_length=200, allow_blank=True, required=False)
    address = TextField(max_length=1000, allow_blank=True, required=False)
    country = TextField(max_length=2, allow_blank=True, required=False)
    region = TextField(max_length=6, allow_blank=True, required=False, help_text="ISO 3166-2, such as US-NY")
    tax_number = TextField(max_length=64, allow_blank=True, required=False)


class TaxNumberIn(StrictSerializer):
    tax_number = TextField(max_length=64, help_text="the one that was looked at")


class MemberOut(serializers.ModelSerializer[Membership]):
    email = serializers.EmailField(source="user.email", read_only=True)
    name = serializers.CharField(source="user.name", read_only=True)

    class Meta:
        model = Membership
        fields = ("id", "user_id", "email", "name", "role", "created_at")


class MemberIn(StrictSerializer):
    email = TextField(max_length=254)
    name = TextField(max_length=200, allow_blank=True, default="")
    role = StrictChoiceField(choices=Membership.Role.choices)
    initial_password = TextField(max_length=1000, trim_whitespace=False)


class ApiKeyOut(serializers.ModelSerializer[ApiKey]):
    class Meta:
        model = ApiKey
        fields = (
            "id",
            "key_id",
            "label",
            "project",
            "scopes",
            "default_contract_id",
            "created_at",
            "expires_at",
            "revoked_at",
            "last_used_at",
        )


class ApiKeyMade(ApiKeyOut):
    api_key = serializers.CharField(read_only=True, help_text="Shown once; only its SHA-256 is kept.")

    class Meta(ApiKeyOut.Meta):
        fields = (*ApiKeyOut.Meta.fields, "api_key")  # type: ignore[assignment]


class ApiKeyIn(StrictSerializer):
    label = TextField(max_length=100, allow_blank=True, default="")  # type: ignore[assignment]
    project = TextField(max_length=100, allow_blank=True, default="")
    scopes = serializers.ListField(
        child=StrictChoiceField(choices=[scope.value for scope in Scope]), min_length=1, max_length=len(Scope)
    )
    expires_at = TimestampField(required=False, allow_null=True, default=None)
    default_contract_id = UuidField(required=False, allow_null=True, default=None)


class AuditOut(serializers.ModelSerializer[AuditEntry]):
    class Meta:
        model = AuditEntry
        fields = (
            "id",
            "actor_kind",
            "actor_id",
            "action",
            "object_kind",
            "object_id",
            "detail",
            "ip",
            "created_at",
        )


class OrganizationView(ApiView):
    scopes = {"GET": Scope.READ, "PATCH": Scope.MANAGE}

    @extend_schema(operation_id="organization", responses=OrganizationOut)
    def get(self, request: Request) -> Response:
        """The organization of this API key."""
        return Response(OrganizationOut(self.organization).data)

    @extend_schema(operation_id="update_organization", request=OrganizationChange, responses=OrganizationOut)
    def patch(self, request: Request) -> Response:
        """What documents say about it: legal name, address, country, tax number."""
        changed = update_organization(
            organization_id=self.organization_id,
            changes=self.parse(OrganizationChange),
            now=clock.now(),
            actor=self.actor,
        )
        return Response(OrganizationOut(changed).data)


class OrganizationsView(ApiView):
    scopes = {"POST": Scope.OPERATE}
    role = OrganizationRole.OPERATOR

    @extend_schema(
        operation_id="create_organization", request=OrganizationIn, responses={201: OrganizationOut}
    )
    def post(self, request: Request) -> Response:
        """The operator takes in a buyer or a provider."""
        made = create_organization(**self.parse(OrganizationIn), now=clock.now(), actor=self.actor)
        return Response(OrganizationOut(made).data, status=status.HTTP_201_CREATED)


class TaxNumberView(ApiView):
    scopes = {"POST": Scope.OPERATE}
    role = OrganizationRole.OPERATOR

    @extend_schema(operation_id="verify_tax_number", request=TaxNumberIn, responses=OrganizationOut)
    def post(self, request: Request, organization_id: UUID) -> Response:
        """The operator has seen that the tax number is this organization's: it counts as a business from now on, also
        for what it bought with that number before."""
        verified = verify_tax_number(
            organization_id=organization_id, **self.parse(TaxNumberIn), now=clock.now(), actor=self.actor
        )
        return Response(OrganizationOut(verified).data)


class MembersView(ApiView):
    scopes = {"GET": Scope.READ, "POST": Scope.MANAGE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="members", responses=MemberOut(many=True))
    def get(self, request: Request) -> Response:
        """Who may act for the organization."""
        return self.page(members_of(self.organization_id), MemberOut)

    @extend_schema(operation_id="add_member", request=MemberIn, responses={201: MemberOut})
    def post(self, request: Request) -> Response:
        """Add a person by e-mail address; `name` and `initial_password` count for one who has no sign-in yet.

        Who may change things in the portal may there make any key, so a key that adds such a person must itself
        carry every scope of the organization; one with less adds viewers.
        """
        data = self.parse(MemberIn)
        missing = [
            scope for scope in scopes_allowed(self.organization.roles) if scope not in self.api_key.scopes
        ]
        if missing and data["role"] != Membership.Role.VIEWER:
            raise ScopeNotAllowed(f"a key without the scope {missing[0]!r} adds viewers only", field="role")
        member = add_person(organization_id=self.organization_id, **data, now=clock.now(), actor=self.actor)
        return Response(MemberOut(member).data, status=status.HTTP_201_CREATED)


class MemberView(ApiView):
    scopes = {"DELETE": Scope.MANAGE}

    @extend_schema(operation_id="remove_member", request=None, responses={204: None})
    def delete(self, request: Request, membership_id: UUID) -> Response:
        """End a membership; the last owner stays."""
        remove_member(
            organization_id=self.organization_id,
            membership_id=membership_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(status=status.HTTP_204_NO_CONTENT)


class ApiKeysView(ApiView):
    scopes = {"GET": Scope.READ, "POST": Scope.MANAGE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="api_keys", responses=ApiKeyOut(many=True))
    def get(self, request: Request) -> Response:
        """The organization's keys, without their secrets: nobody has those."""
        return self.page(api_keys_of(self.organization_id), ApiKeyOut)

    @extend_schema(operation_id="create_api_key", request=ApiKeyIn, responses={201: ApiKeyMade})
    def post(self, request: Request) -> Response:
        """A new key, with no more scopes than the key that asks. Its text is in this answer and never again."""
        api_key, text = create_api_key(
            organization_id=self.organization_id,
            **self.parse(ApiKeyIn),
            within_scopes=self.api_key.scopes,
            now=clock.now(),
            actor=self.actor,
        )
        made: dict[str, Any] = {**ApiKeyOut(api_key).data, "api_key": text}
        return Response(made, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})


class ApiKeyView(ApiView):
    scopes = {"DELETE": Scope.MANAGE}

    @extend_schema(operation_id="revoke_api_key", request=None, responses={200: ApiKeyOut})
    def delete(self, request: Request, api_key_id: UUID) -> Response:
        """Revoke it for good. The row stays, as what it did stays."""
        revoked = revoke_api_key(
            organization_id=self.organization_id, api_key_id=api_key_id, now=clock.now(), actor=self.actor
        )
        return Response(ApiKeyOut(revoked).data)


class AuditView(ApiView):
    scopes = {"GET": Scope.MANAGE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="audit", responses=AuditOut(many=True))
    def get(self, request: Request) -> Response:
        """Who did what to which object, newest first."""
        return self.page(audit_of(self.organization_id), AuditOut)


urlpatterns = [
    path("organization", OrganizationView.as_view(), name="api-organization"),
    path("organizations", OrganizationsView.as_view(), name="api-organizations"),
    path("organizations/<uuid:organization_id>/verify-tax-number", TaxNumberView.as_view()),
    path("members", MembersView.as_view(), name="api-members"),
    path("members/<uuid:membership_id>", MemberView.as_view(), name="api-member"),
    path("api-keys", ApiKeysView.as_view(), name="api-keys"),
    path("api-keys/<uuid:api_key_id>", ApiKeyView.as_view(), name="api-key"),
    path("audit", AuditView.as_view(), name="api-audit"),
    # Last of all rooms: whatever is left under /api/v1 is a problem document, not a page.
    re_path(r"^.*$", NoSuchView.as_view(), name="api-nothing"),
]
