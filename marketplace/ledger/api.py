"""REST of the books: an organization's own balances and entries."""

from __future__ import annotations

from typing import Any

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination, page_of, window_of
from marketplace.api.views import ApiView
from marketplace.ledger.history_api import decimal as _decimal
from marketplace.ledger.history_api import urlpatterns as history_urlpatterns
from marketplace.ledger.models import LedgerAccount
from marketplace.ledger.selectors import accounts_of, balance_of, entries_of


class LedgerAccountOut(serializers.ModelSerializer[LedgerAccount]):
    posted_micros = serializers.SerializerMethodField()
    pending_micros = serializers.SerializerMethodField()
    available_micros = serializers.SerializerMethodField()
    posted = serializers.SerializerMethodField(help_text="posted_micros as a decimal string")
    available = serializers.SerializerMethodField(help_text="available_micros as a decimal string")

    class Meta:
        model = LedgerAccount
        fields = (
            "id",
            "kind",
            "currency",
            "reference_id",
            "posted_micros",
            "pending_micros",
            "available_micros",
            "posted",
            "available",
        )

    def get_posted_micros(self, account: LedgerAccount) -> int:
        return balance_of(account).posted_micros

    def get_pending_micros(self, account: LedgerAccount) -> int:
        return balance_of(account).pending_micros

    def get_available_micros(self, account: LedgerAccount) -> int:
        return balance_of(account).available_micros

    def get_posted(self, account: LedgerAccount) -> str:
        return _decimal(balance_of(account).posted_micros)

    def get_available(self, account: LedgerAccount) -> str:
        return _decimal(balance_of(account).available_micros)


class EntryOut(serializers.Serializer[Any]):
    transfer_id = serializers.UUIDField()
    account_id = serializers.UUIDField()
    kind = serializers.CharField()
    currency = serializers.CharField()
    amount_micros = serializers.IntegerField(help_text="negative where the account was debited")
    amount = serializers.CharField(help_text="amount_micros as a decimal string")
    code = serializers.CharField()
    reference_id = serializers.UUIDField(allow_null=True)
    occurred_at = serializers.DateTimeField()


class BalancesView(ApiView):
    scopes = {"GET": Scope.READ}
    pagination_class = CursorPagination

    @extend_schema(operation_id="ledger_balances", responses=LedgerAccountOut(many=True))
    def get(self, request: Request) -> Response:
        """The organization's accounts in the books with what is posted, held and available."""
        return self.page(accounts_of(self.organization_id), LedgerAccountOut)


class TransfersView(ApiView):
    scopes = {"GET": Scope.READ}
    pagination_class = CursorPagination

    @extend_schema(operation_id="ledger_transfers", responses=EntryOut(many=True))
    def get(self, request: Request) -> Response:
        """Every movement of the organization's accounts, newest first; a movement between two of them shows both
        sides. Who is on the other side is not said here: documents say it.
        """
        window = window_of(request)
        accounts = {account.id: account for account in accounts_of(self.organization_id)}
        entries = entries_of(list(accounts), before=window.before, limit=window.size + 1)
        transfer_ids = list(dict.fromkeys(entry.transfer_id for entry in entries))
        shown, cursor = page_of(transfer_ids, window, lambda transfer_id: transfer_id)
        items = [
            {
                "transfer_id": entry.transfer_id,
                "account_id": entry.account_id,
                "kind": accounts[entry.account_id].kind,
                "currency": accounts[entry.account_id].currency,
                "amount_micros": entry.amount_micros,
                "amount": _decimal(entry.amount_micros),
                "code": entry.code,
                "reference_id": entry.reference_id,
                "occurred_at": entry.occurred_at,
            }
            for entry in entries
            if entry.transfer_id in set(shown)
        ]
        return Response({"items": EntryOut(items, many=True).data, "next": cursor})


urlpatterns = [
    path("ledger/balances", BalancesView.as_view(), name="api-ledger-balances"),
    path("ledger/transfers", TransfersView.as_view(), name="api-ledger-transfers"),
    *history_urlpatterns,
]
