"""REST: whether a committed contract renews itself at its end."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.serializers import MicrosPerMtokField, StrictBooleanField, StrictSerializer
from marketplace.api.views import ApiView
from marketplace.contracts.models import Renewal
from marketplace.contracts.renewal_selectors import RenewalShown, renewal_of
from marketplace.contracts.renewing import set_renewal
from pricing.services import MAX_RATE_MICROS_PER_MTOK


class RenewalOut(serializers.Serializer[RenewalShown]):
    contract_id = serializers.UUIDField()
    renews = serializers.BooleanField(help_text="whether it is to renew itself, or has")
    status = serializers.ChoiceField(choices=Renewal.Status.choices)
    max_rate_micros_per_mtok = serializers.IntegerField(allow_null=True)
    decided_from = serializers.DateTimeField(help_text="a fresh quote is asked for from then on")
    decided_until = serializers.DateTimeField(help_text="the gate of the first period after the term")
    next_attempt_at = serializers.DateTimeField(allow_null=True)
    problem = serializers.CharField(help_text="why the last try failed, as a code; empty where none did")
    problem_detail = serializers.CharField()
    successor_id = serializers.UUIDField(allow_null=True)


class RenewalIn(StrictSerializer):
    renews = StrictBooleanField()
    max_rate_micros_per_mtok = MicrosPerMtokField(
        max_value=MAX_RATE_MICROS_PER_MTOK,
        required=False,
        allow_null=True,
        default=None,
        help_text="your highest rate for the next term; needed to renew",
    )


class RenewalView(ApiView):
    scopes: ClassVar = {"GET": Scope.READ, "PUT": Scope.TRADE}
    role = OrganizationRole.BUYER

    @extend_schema(operation_id="renewals_read", responses=RenewalOut)
    def get(self, request: Request, contract_id: UUID) -> Response:
        """Whether a committed contract renews itself at its end, and what came of it."""
        shown = renewal_of(organization_id=self.organization_id, contract_id=contract_id)
        return Response(RenewalOut(shown).data)

    @extend_schema(operation_id="renewals_set", request=RenewalIn, responses=RenewalOut)
    def put(self, request: Request, contract_id: UUID) -> Response:
        """Renew it at its end for the same terms, at most at this rate, or do not. Again sets it again."""
        asked: dict[str, Any] = self.parse(RenewalIn)
        set_renewal(
            organization_id=self.organization_id,
            contract_id=contract_id,
            **asked,
            now=clock.now(),
            actor=self.actor,
        )
        shown = renewal_of(organization_id=self.organization_id, contract_id=contract_id)
        return Response(RenewalOut(shown).data)


urlpatterns = [path("contracts/<uuid:contract_id>/renewal", RenewalView.as_view())]
