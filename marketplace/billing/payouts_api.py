"""REST of the provider's side of the money: bond, what may be paid out and why not, consent, and where payouts go."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.conf import settings
from django.urls import path
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.organization_clocks import billing_now
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent, idempotent_in_phases
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import MicrosField, StrictChoiceField, StrictSerializer, TextField
from marketplace.api.views import ApiView
from marketplace.billing.models import (
    BondDeposit,
    BondWithdrawal,
    DestinationNotice,
    PayoutDestinationChange,
)
from marketplace.billing.payout_status import payout_status
from marketplace.billing.services.bonds import deposit_bond, withdraw_bond
from marketplace.billing.services.payout_destinations import (
    MAX_CHARACTERS,
    cancel_destination,
    give_consent,
    request_destination,
    withdraw_consent,
)
from marketplace.contracts.bonds import bond_of
from providers.models import Provider


class BondOut(serializers.Serializer[Any]):
    currency = serializers.CharField()
    bond_ppm = serializers.IntegerField(help_text="the share of 30 days of firm value that is asked for")
    firm_value_micros = serializers.IntegerField(help_text="30 days of what is sold firm")
    required_micros = serializers.IntegerField()
    held_micros = serializers.IntegerField()
    free_micros = serializers.IntegerField(help_text="what may be withdrawn")
    room_micros = serializers.IntegerField(
        allow_null=True, help_text="how much more firm value (of 30 days) it covers; null: no bond is asked"
    )
    missing_micros = serializers.IntegerField(help_text="what is kept of earnings until it is covered")


class BondDepositIn(StrictSerializer):
    amount_micros = MicrosField()
    source = StrictChoiceField(  # type: ignore[assignment]
        choices=[BondDeposit.Source.PROCESSOR.value, BondDeposit.Source.EARNINGS.value],
        help_text="processor: as a top-up; earnings: out of what is owed to you",
    )


class BondWithdrawalIn(StrictSerializer):
    amount_micros = MicrosField()


class BondDepositOut(serializers.ModelSerializer[BondDeposit]):
    class Meta:
        model = BondDeposit
        fields = ("id", "source", "amount_micros", "currency", "status", "action_url", "created_at")


class BondWithdrawalOut(serializers.ModelSerializer[BondWithdrawal]):
    class Meta:
        model = BondWithdrawal
        fields = ("id", "amount_micros", "currency", "created_at")


class ReasonOut(serializers.Serializer[Any]):
    code = serializers.CharField()
    text = serializers.CharField()


class PayoutStatusOut(serializers.Serializer[Any]):
    available_micros = serializers.IntegerField(
        help_text="unstated + held + retained + ready, where it suffices"
    )
    unstated_micros = serializers.IntegerField(help_text="earned, and on no statement yet")
    held_micros = serializers.IntegerField(help_text="stated, within the holding time")
    retained_micros = serializers.IntegerField(help_text="kept against late corrections and disputes")
    ready_micros = serializers.IntegerField(help_text="what would be sent now, in whole minor units")
    next_at = serializers.DateTimeField(allow_null=True, help_text="when the next part comes free")
    reasons = ReasonOut(many=True, help_text="why nothing is sent now; empty where it is")


class ConsentOut(serializers.Serializer[Any]):
    consented_at = serializers.DateTimeField(allow_null=True, source="self_billing_consent_at")


class DestinationIn(StrictSerializer):
    destination = TextField(max_length=MAX_CHARACTERS, help_text="a bank reference, such as an IBAN")


class NoticeOut(serializers.ModelSerializer[DestinationNotice]):
    class Meta:
        model = DestinationNotice
        fields = ("email", "kind", "created_at")


class DestinationChangeOut(serializers.ModelSerializer[PayoutDestinationChange]):
    notices = NoticeOut(many=True, help_text="which owner was told, of what and when")

    class Meta:
        model = PayoutDestinationChange
        fields = (
            "id",
            "former",
            "destination",
            "status",
            "effective_at",
            "ended_at",
            "created_at",
            "notices",
        )


class DestinationOut(serializers.Serializer[Any]):
    destination = serializers.CharField(source="payout_destination", help_text="where payouts go now")
    pending = serializers.SerializerMethodField(help_text="the change that waits, if one does")

    @extend_schema_field(DestinationChangeOut(allow_null=True))
    def get_pending(self, provider: Provider) -> Any:
        change = PayoutDestinationChange.objects.filter(
            organization_id=provider.organization_id, status=PayoutDestinationChange.Status.PENDING
        ).first()
        return DestinationChangeOut(change).data if change else None


class _ProviderView(ApiView):
    role = OrganizationRole.PROVIDER

    def provider(self) -> Provider:
        """The profile; an empty one before the organization has done anything as a provider."""
        found = Provider.objects.filter(organization_id=self.organization_id).first()
        return found or Provider(organization_id=self.organization_id)


class BondView(_ProviderView):
    @extend_schema(operation_id="bond_retrieve", responses=BondOut)
    def get(self, request: Request) -> Response:
        """The bond: what your firm sales ask for, what is held, what is free."""
        bond = bond_of(self.organization_id, now=clock.now())
        figures = {
            "currency": settings.MARKET_CURRENCY,
            "bond_ppm": settings.PROVIDER_BOND_PPM,
            "firm_value_micros": bond.firm_value_micros,
            "required_micros": bond.required_micros,
            "held_micros": bond.held_micros,
            "free_micros": bond.free_micros,
            "room_micros": bond.room_micros,
            "missing_micros": bond.missing_micros,
        }
        return Response(BondOut(figures).data)


class BondDepositsView(_ProviderView):
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.PROVIDE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="bond_deposits_list", responses=BondDepositOut(many=True))
    def get(self, request: Request) -> Response:
        """What was put into the bond, newest first; `retained` is what was kept of earnings."""
        return self.page(BondDeposit.objects.filter(organization_id=self.organization_id), BondDepositOut)

    @extend_schema(
        operation_id="bond_deposits_create", request=BondDepositIn, responses={201: BondDepositOut}
    )
    @idempotent_in_phases
    def post(self, request: Request) -> Response:
        """Put money into the bond. Needs an Idempotency-Key. While it is pending, `action_url` says where to go on."""
        made = deposit_bond(
            organization_id=self.organization_id,
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
            **self.parse(BondDepositIn),
        )
        return Response(BondDepositOut(made).data, status=201)


class BondWithdrawalsView(_ProviderView):
    scopes: ClassVar = {"POST": Scope.MANAGE}

    @extend_schema(
        operation_id="bond_withdrawals_create", request=BondWithdrawalIn, responses={201: BondWithdrawalOut}
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Take what is free back into what is paid out next. Needs an Idempotency-Key."""
        made = withdraw_bond(
            organization_id=self.organization_id,
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
            **self.parse(BondWithdrawalIn),
        )
        return Response(BondWithdrawalOut(made).data, status=201)


class PayoutStatusView(_ProviderView):
    @extend_schema(operation_id="payout_status_retrieve", responses=PayoutStatusOut)
    def get(self, request: Request) -> Response:
        """What of your balance is paid out next, what is kept and until when, and why nothing is sent."""
        own_now = billing_now(self.organization_id, clock.now())
        return Response(PayoutStatusOut(payout_status(self.organization_id, now=own_now)).data)


class ConsentView(_ProviderView):
    scopes: ClassVar = {"GET": Scope.READ, "PUT": Scope.MANAGE, "DELETE": Scope.MANAGE}

    @extend_schema(operation_id="self_billing_consent_retrieve", responses=ConsentOut)
    def get(self, request: Request) -> Response:
        """Since when you agree that the market writes your documents."""
        return Response(ConsentOut(self.provider()).data)

    @extend_schema(operation_id="self_billing_consent_give", request=None, responses=ConsentOut)
    def put(self, request: Request) -> Response:
        """Agree that the market writes your statements as invoices on your behalf; each keeps the date of it."""
        given = give_consent(organization_id=self.organization_id, now=clock.now(), actor=self.actor)
        return Response(ConsentOut(given).data)

    @extend_schema(operation_id="self_billing_consent_withdraw", responses={204: None})
    def delete(self, request: Request) -> Response:
        """Take it back. Nothing is paid out until it is given again."""
        withdraw_consent(organization_id=self.organization_id, now=clock.now(), actor=self.actor)
        return Response(status=204)


class DestinationView(_ProviderView):
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.MANAGE}

    @extend_schema(operation_id="payout_destination_retrieve", responses=DestinationOut)
    def get(self, request: Request) -> Response:
        """Where payouts go, and the change that waits."""
        return Response(DestinationOut(self.provider()).data)

    @extend_schema(
        operation_id="payout_destination_change",
        request=DestinationIn,
        responses={201: DestinationChangeOut},
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Ask for another destination. It holds in 72 hours; all owners are told, and any may cancel it until then.

        Needs an Idempotency-Key.
        """
        change = request_destination(
            organization_id=self.organization_id,
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
            **self.parse(DestinationIn),
        )
        return Response(DestinationChangeOut(change).data, status=201)


class DestinationChangeCancelView(_ProviderView):
    scopes: ClassVar = {"POST": Scope.MANAGE}

    @extend_schema(operation_id="payout_destination_cancel", request=None, responses=DestinationChangeOut)
    def post(self, request: Request, change_id: UUID) -> Response:
        """End a change that waits. Again: nothing."""
        change = cancel_destination(
            organization_id=self.organization_id, change_id=change_id, now=clock.now(), actor=self.actor
        )
        return Response(DestinationChangeOut(change).data)


urlpatterns = [
    path("bond", BondView.as_view()),
    path("bond/deposits", BondDepositsView.as_view()),
    path("bond/withdrawals", BondWithdrawalsView.as_view()),
    path("payout-status", PayoutStatusView.as_view()),
    path("self-billing-consent", ConsentView.as_view()),
    path("payout-destination", DestinationView.as_view()),
    path("payout-destination/changes/<uuid:change_id>/cancel", DestinationChangeCancelView.as_view()),
]
