"""REST: the saved card, refunds, the provider's account at the processor, what the operator has to look at."""

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
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent_in_phases
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    MicrosField,
    StrictBooleanField,
    StrictSerializer,
    TextField,
    UuidField,
)
from marketplace.api.views import ApiView
from marketplace.billing.models import ProcessorOperation, ProcessorPayer, ProcessorReport
from marketplace.billing.selectors import payout_blocked_reason
from marketplace.billing.services.cancelling import cancel_payment
from marketplace.billing.services.cards import remove_card, saved_card, set_collection
from marketplace.billing.services.collecting import save_card
from marketplace.billing.services.left_to_people import give_up_operation, operations_left_to_people
from marketplace.billing.services.provider_accounts import onboarding_link, payout_account_of
from marketplace.billing.services.refunds import refund_payment, refunds_of
from marketplace.isolating import items_left_to_people
from marketplace.models import FailingItem


class CardOut(serializers.Serializer[Any]):
    is_saved = serializers.BooleanField(help_text="whether there is one; else the rest is empty")
    brand = serializers.CharField()
    last4 = serializers.CharField()
    expires = serializers.CharField(help_text="YYYY-MM")
    collect_automatically = serializers.BooleanField()


class FailingItemOut(serializers.ModelSerializer[FailingItem]):
    class Meta:
        model = FailingItem
        fields = (
            "id",
            "job",
            "item",
            "attempts",
            "error",
            "first_failed_at",
            "last_failed_at",
            "next_attempt_at",
        )


class CardIn(StrictSerializer):
    collect_automatically = StrictBooleanField()


class CardPageOut(serializers.Serializer[Any]):
    status = serializers.CharField()
    action_url = serializers.CharField(help_text="the processor's page, where the buyer leaves the card")


class RefundIn(StrictSerializer):
    payment_id = UuidField(help_text="of a top-up, or of a payment of an invoice by the processor")
    amount_micros = MicrosField(
        min_value=1, help_text="whole minor units, at most what is left of the payment"
    )


class RefundOut(serializers.ModelSerializer[ProcessorOperation]):
    payment_id = serializers.UUIDField(source="subject_id")
    status = serializers.SerializerMethodField()

    class Meta:
        model = ProcessorOperation
        fields = (
            "id",
            "payment_id",
            "amount_micros",
            "currency",
            "status",
            "reason",
            "requested_at",
            "ended_at",
        )

    @extend_schema_field(serializers.ChoiceField(choices=["pending", "succeeded", "failed"]))
    def get_status(self, refund: ProcessorOperation) -> str:
        ended = (ProcessorOperation.Status.SUCCEEDED, ProcessorOperation.Status.FAILED)
        return str(refund.status) if refund.status in ended else "pending"


class PaymentOut(serializers.ModelSerializer[ProcessorOperation]):
    payment_id = serializers.UUIDField(source="subject_id")

    class Meta:
        model = ProcessorOperation
        fields = ("payment_id", "purpose", "amount_micros", "currency", "status", "reason")


class PayoutAccountOut(serializers.Serializer[Any]):
    is_open = serializers.BooleanField(help_text="whether there is an account at the payment processor")
    payouts_enabled = serializers.BooleanField()
    requirements_due = serializers.ListField(child=serializers.CharField())
    blocked_reason = serializers.CharField(help_text="why payouts wait; empty where they do not")


class LinkOut(serializers.Serializer[Any]):
    url = serializers.CharField(help_text="good once, for minutes")


class OperationOut(serializers.ModelSerializer[ProcessorOperation]):
    class Meta:
        model = ProcessorOperation
        fields = (
            "id",
            "kind",
            "purpose",
            "organization_id",
            "subject_id",
            "processor",
            "status",
            "amount_micros",
            "currency",
            "object_id",
            "attempts",
            "reason",
            "requested_at",
            "ended_at",
        )


class GiveUpIn(StrictSerializer):
    reason = TextField(max_length=150, help_text="what was looked at; it never happened")


class ReportOut(serializers.ModelSerializer[ProcessorReport]):
    class Meta:
        model = ProcessorReport
        fields = (
            "id",
            "processor",
            "since",
            "until",
            "currency",
            "ledger_micros",
            "processor_micros",
            "difference_micros",
            "details",
            "created_at",
        )


class CardView(ApiView):
    role = OrganizationRole.BUYER
    scopes: ClassVar = {
        "GET": Scope.READ,
        "POST": Scope.MANAGE,
        "PATCH": Scope.MANAGE,
        "DELETE": Scope.MANAGE,
    }

    @extend_schema(operation_id="card_retrieve", responses=CardOut)
    def get(self, request: Request) -> Response:
        """The saved card, as far as people may see it."""
        return Response(_shown(saved_card(self.organization_id)))

    @extend_schema(operation_id="card_save", request=None, responses={201: CardPageOut})
    @idempotent_in_phases
    def post(self, request: Request) -> Response:
        """A page of the processor's to leave a card at; it replaces the one there is. Needs an Idempotency-Key."""
        page = save_card(
            organization_id=self.organization_id,
            operation_id=self.operation_id,
            currency=settings.MARKET_CURRENCY,
            now=clock.now(),
        )
        return Response(CardPageOut(page).data, status=201)

    @extend_schema(operation_id="card_change", request=CardIn, responses=CardOut)
    def patch(self, request: Request) -> Response:
        """Whether invoices are charged to the card when they are issued, and at reminders."""
        card = set_collection(
            organization_id=self.organization_id, **self.parse(CardIn), now=clock.now(), actor=self.actor
        )
        return Response(_shown(card))

    @extend_schema(operation_id="card_remove", responses={204: None})
    def delete(self, request: Request) -> Response:
        """Forget the card, here and at the processor."""
        remove_card(organization_id=self.organization_id, now=clock.now(), actor=self.actor)
        return Response(status=204)


class RefundsView(ApiView):
    role = OrganizationRole.BUYER
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.TRADE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="refunds_list", responses=RefundOut(many=True))
    def get(self, request: Request) -> Response:
        """What was sent back, newest first."""
        return self.page(refunds_of(self.organization_id), RefundOut)

    @extend_schema(operation_id="refunds_create", request=RefundIn, responses={201: RefundOut})
    @idempotent_in_phases
    def post(self, request: Request) -> Response:
        """Send unused balance back to the card that paid. Needs an Idempotency-Key."""
        made = refund_payment(
            organization_id=self.organization_id,
            **self.parse(RefundIn),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(RefundOut(made).data, status=201)


class PaymentCancelView(ApiView):
    role = OrganizationRole.BUYER
    scopes: ClassVar = {"POST": Scope.TRADE}

    @extend_schema(operation_id="payments_cancel", request=None, responses=PaymentOut)
    def post(self, request: Request, payment_id: UUID) -> Response:
        """End a charge that waits for the buyer at his bank, so that he may pay another way; again: nothing.

        What succeeded in the same moment stays paid: the answer says which.
        """
        ended = cancel_payment(
            organization_id=self.organization_id, payment_id=payment_id, now=clock.now(), actor=self.actor
        )
        return Response(PaymentOut(ended).data)


class PayoutAccountView(ApiView):
    role = OrganizationRole.PROVIDER

    @extend_schema(operation_id="payout_account_retrieve", responses=PayoutAccountOut)
    def get(self, request: Request) -> Response:
        """The provider's account at the payment processor: what is due there, and why payouts wait."""
        account = payout_account_of(self.organization_id)
        found = {
            "is_open": account is not None,
            "payouts_enabled": bool(account and account.payouts_enabled and account.transfers_enabled),
            "requirements_due": account.requirements_due if account else [],
            "blocked_reason": payout_blocked_reason(self.organization_id) or "",
        }
        return Response(PayoutAccountOut(found).data)


class PayoutAccountLinkView(ApiView):
    role = OrganizationRole.PROVIDER
    scopes: ClassVar = {"POST": Scope.MANAGE}

    @extend_schema(operation_id="payout_account_link", request=None, responses={201: LinkOut})
    def post(self, request: Request) -> Response:
        """Where the provider opens his account, or gives what is due there; the account itself is made once."""
        url = onboarding_link(organization_id=self.organization_id, now=clock.now())
        return Response(LinkOut({"url": url}).data, status=201)


class OperationsView(ApiView):
    role = OrganizationRole.OPERATOR
    pagination_class = CursorPagination

    @extend_schema(operation_id="processor_operations_list", responses=OperationOut(many=True))
    def get(self, request: Request) -> Response:
        """What is asked of the payment processor and needs a person: open for an hour, or with a key too old."""
        return self.page(operations_left_to_people(clock.now()), OperationOut)


class OperationGiveUpView(ApiView):
    role = OrganizationRole.OPERATOR
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="processor_operations_give_up", request=GiveUpIn, responses=OperationOut)
    @idempotent_in_phases
    def post(self, request: Request, operation_id: UUID) -> Response:
        """Say that it never happened, after having looked there: its money is free again. Needs an Idempotency-Key."""
        made = give_up_operation(
            operation_id=operation_id, **self.parse(GiveUpIn), now=clock.now(), actor=self.actor
        )
        return Response(OperationOut(made).data)


class FailingItemsView(ApiView):
    role = OrganizationRole.OPERATOR
    pagination_class = CursorPagination

    @extend_schema(operation_id="failing_items_list", responses=FailingItemOut(many=True))
    def get(self, request: Request) -> Response:
        """What periodic jobs could not do five times in a row, and why; each is tried again by itself."""
        return self.page(items_left_to_people(), FailingItemOut)


class ReportsView(ApiView):
    role = OrganizationRole.OPERATOR
    pagination_class = CursorPagination

    @extend_schema(operation_id="processor_reports_list", responses=ReportOut(many=True))
    def get(self, request: Request) -> Response:
        """The daily comparisons of the processor's balance with the books."""
        return self.page(ProcessorReport.objects.all(), ReportOut)


def _shown(card: ProcessorPayer | None) -> dict[str, Any]:
    found = {
        "is_saved": card is not None,
        "brand": card.card_brand if card else "",
        "last4": card.card_last4 if card else "",
        "expires": card.card_expires if card else "",
        "collect_automatically": bool(card and card.collect_automatically),
    }
    return CardOut(found).data


urlpatterns = [
    path("card", CardView.as_view()),
    path("refunds", RefundsView.as_view()),
    path("payments/<uuid:payment_id>/cancel", PaymentCancelView.as_view()),
    path("payout-account", PayoutAccountView.as_view()),
    path("payout-account/link", PayoutAccountLinkView.as_view()),
    path("processor-operations", OperationsView.as_view()),
    path("processor-operations/<uuid:operation_id>/give-up", OperationGiveUpView.as_view()),
    path("processor-reports", ReportsView.as_view()),
    path("failing-items", FailingItemsView.as_view()),
]
