"""REST: what the operator moved himself between his own accounts and the payment processor."""

from __future__ import annotations

from typing import ClassVar

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import MicrosField, StrictChoiceField, StrictSerializer, TextField
from marketplace.api.views import ApiView
from marketplace.billing.operator_models import OperatorPosting
from marketplace.billing.services.operator_postings import WITHDRAWN_FROM, post_operator_movement
from marketplace.ledger.models import AccountKind


class OperatorPostingOut(serializers.ModelSerializer[OperatorPosting]):
    class Meta:
        model = OperatorPosting
        fields = (
            "id",
            "kind",
            "account_kind",
            "amount_micros",
            "currency",
            "reference",
            "reason",
            "created_at",
        )


class OperatorPostingIn(StrictSerializer):
    kind = StrictChoiceField(choices=OperatorPosting.Kind.values)
    account_kind = StrictChoiceField(
        choices=[str(kind) for kind in WITHDRAWN_FROM],
        required=False,
        default=str(AccountKind.OPERATOR),
        help_text="of a withdrawal: which of the operator's accounts it is of",
    )
    amount_micros = MicrosField(min_value=1, help_text="whole minor units of the market's currency")
    reference = TextField(
        max_length=100,
        required=False,
        allow_blank=True,
        default="",
        help_text="the processor's own name of the movement; empty: it has none",
    )
    reason = TextField(max_length=200)


class OperatorPostingsView(ApiView):
    role = OrganizationRole.OPERATOR
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.OPERATE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="operator_postings_list", responses=OperatorPostingOut(many=True))
    def get(self, request: Request) -> Response:
        """Capital put in, earnings and tax taken out, fees billed beside the movements; newest first."""
        return self.page(OperatorPosting.objects.all(), OperatorPostingOut)

    @extend_schema(
        operation_id="operator_postings_create",
        request=OperatorPostingIn,
        responses={201: OperatorPostingOut},
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Write down what was moved at the processor by hand. It moves nothing there. Needs an Idempotency-Key."""
        made = post_operator_movement(
            **self.parse(OperatorPostingIn),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(OperatorPostingOut(made).data, status=201)


urlpatterns = [path("operator-postings", OperatorPostingsView.as_view())]
