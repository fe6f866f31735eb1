"""REST of grants: an organization reads its own; the operator gives and revokes them."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.conf import settings
from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent, idempotent_in_phases
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    MicrosField,
    PpmField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView
from marketplace.billing.payments_api import RefundOut
from marketplace.billing.services.grant_refunds import give_grant_back
from marketplace.errors import NotFound
from marketplace.ledger.grants import GrantTerms, give_grant, grants_of, revoke_grant
from marketplace.ledger.models import Grant, GrantRefund
from pricing.models import Grade

_HIGHEST_PRIORITY = 999


class GrantSerializer(serializers.ModelSerializer[Grant]):
    class Meta:
        model = Grant
        fields = (
            "id",
            "organization_id",
            "account_id",
            "kind",
            "currency",
            "amount_micros",
            "free_micros",
            "cost_basis_ppm",
            "priority",
            "grade_id",
            "expires_at",
            "status",
            "created_at",
            "ended_at",
        )


class GrantRequest(StrictSerializer):
    organization_id = UuidField()
    kind = StrictChoiceField(choices=Grant.Kind.values)
    amount_micros = MicrosField(min_value=1)
    cost_basis_ppm = PpmField(
        required=False, default=0, help_text="the share that a purchased one costs, off the prepaid balance"
    )
    priority = StrictIntegerField(
        required=False, default=100, min_value=0, max_value=_HIGHEST_PRIORITY, help_text="low is burned first"
    )
    grade_id = UuidField(required=False, allow_null=True, default=None, help_text="null: every grade")
    expires_at = TimestampField(required=False, allow_null=True, default=None)


class RevokedSerializer(serializers.Serializer[Any]):
    revoked_micros = serializers.IntegerField(help_text="what was free of it; open holds keep theirs")


class GrantRefundRequest(StrictSerializer):
    # To be said, even if it is null: an empty body gives nothing back.
    amount_micros = MicrosField(
        min_value=1, allow_null=True, help_text="of the credit; null: all that is free"
    )
    payment_id = UuidField(
        required=False,
        allow_null=True,
        default=None,
        help_text="a payment of the buyer, whose card gets it; null: it stays on the balance",
    )


class GrantRefundSerializer(serializers.ModelSerializer[GrantRefund]):
    """`paid_micros` went to the balance, the rest of `amount_micros` had not been paid for."""

    class Meta:
        model = GrantRefund
        fields = ("id", "grant_id", "amount_micros", "paid_micros", "created_at")


class GivenBackSerializer(serializers.Serializer[Any]):
    refund = GrantRefundSerializer()
    sent = RefundOut(allow_null=True, help_text="its way to the card")


class GrantsView(ApiView):
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.OPERATE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="grants_list", responses=GrantSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The organization's grants, newest first: credit that is burned before its balance."""
        return self.page(grants_of(self.organization_id), GrantSerializer)

    @extend_schema(operation_id="grants_create", request=GrantRequest, responses={201: GrantSerializer})
    @idempotent
    def post(self, request: Request) -> Response:
        """Give an organization credit. For the operator. Needs an Idempotency-Key."""
        data = self.parse(GrantRequest)
        organization_id = data.pop("organization_id")
        if data["grade_id"] is not None and not Grade.objects.filter(pk=data["grade_id"]).exists():
            raise NotFound("no such grade", field="grade_id")
        given = give_grant(
            id=self.operation_id,
            organization_id=organization_id,
            terms=GrantTerms(currency=settings.MARKET_CURRENCY, **data),
            now=clock.now(),
            actor=self.actor,
        )
        return Response(GrantSerializer(given).data, status=201)


class RevokeGrantView(ApiView):
    scopes: ClassVar = {"POST": Scope.OPERATE}
    role = OrganizationRole.OPERATOR

    @extend_schema(operation_id="grants_revoke", request=None, responses=RevokedSerializer)
    def post(self, request: Request, grant_id: UUID) -> Response:
        """Take back what is free of a grant. Again takes back what open holds have given back since."""
        revoked = revoke_grant(grant_id=grant_id, now=clock.now(), actor=self.actor)
        return Response(RevokedSerializer({"revoked_micros": revoked}).data)


class RefundGrantView(ApiView):
    scopes: ClassVar = {"POST": Scope.OPERATE}
    role = OrganizationRole.OPERATOR

    @extend_schema(
        operation_id="grants_refund", request=GrantRefundRequest, responses={201: GivenBackSerializer}
    )
    @idempotent_in_phases
    def post(self, request: Request, grant_id: UUID) -> Response:
        """Give unused credit back, as far as it was paid for. For the operator. Needs an Idempotency-Key."""
        given = give_grant_back(
            grant_id=grant_id,
            **self.parse(GrantRefundRequest),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(GivenBackSerializer(given).data, status=201)


urlpatterns = [
    path("grants", GrantsView.as_view(), name="api-grants"),
    path("grants/<uuid:grant_id>/revoke", RevokeGrantView.as_view(), name="api-grant-revoke"),
    path("grants/<uuid:grant_id>/refund", RefundGrantView.as_view(), name="api-grant-refund"),
]
