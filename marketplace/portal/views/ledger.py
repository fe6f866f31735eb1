"""The organization's side of the books: its accounts, and one account's movements with the balance after each."""

from __future__ import annotations

from uuid import UUID

from django.core.exceptions import BadRequest
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.exporting import MEDIA_TYPES, export
from marketplace.ledger.extract import VERIFIER, extract_lines
from marketplace.ledger.grants import grants_of
from marketplace.ledger.history import own_account, statement, statement_page
from marketplace.ledger.history_api import STATEMENT_COLUMNS, statement_rows
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.selectors import accounts_of, balance_of
from marketplace.portal.access import SeatedRequest, page
from marketplace.portal.paging import PAGE_SIZE, cursor_of

MOST_ACCOUNTS = 50
# What somebody looks for first; one account per contract comes after these.
_FIRST = (AccountKind.PREPAID, AccountKind.RECEIVABLE, AccountKind.PAYABLE, AccountKind.BOND)


@require_safe
@page(OrganizationRole.BUYER)
def of_buyer(request: SeatedRequest) -> HttpResponseBase:
    return _ledger(request, "buyer-home")


@require_safe
@page(OrganizationRole.PROVIDER)
def of_provider(request: SeatedRequest) -> HttpResponseBase:
    return _ledger(request, "provider-home")


def _ledger(request: SeatedRequest, home: str) -> HttpResponseBase:
    organization_id = request.seat.organization.id
    asked = request.GET.get("file")
    if asked == "extract":
        lines = extract_lines(organization_id=organization_id, now=clock.now())
        response = StreamingHttpResponse(lines, content_type=MEDIA_TYPES["ndjson"])
        response["Content-Disposition"] = 'attachment; filename="extract.ndjson"'
        return response
    if asked == "verifier":
        program = HttpResponse(VERIFIER.read_bytes(), content_type="text/x-python")
        program["Content-Disposition"] = 'attachment; filename="verify.py"'
        return program
    account = _account(request, organization_id)
    if asked == "csv" and account is not None:
        rows = statement_rows(statement(account, start=None, end=None), account)
        name = f"statement-{account.kind}-{account.currency}"
        return export(rows, columns=STATEMENT_COLUMNS, form="csv", filename=name)
    return _page(request, organization_id, account, home)


def _page(
    request: SeatedRequest, organization_id: UUID, account: LedgerAccount | None, home: str
) -> HttpResponse:
    text = request.GET.get("before")
    lines = []
    if account is not None:
        before = None if text is None else cursor_of(text)
        lines = statement_page(account, before=before, limit=PAGE_SIZE + 1)
    accounts = sorted(accounts_of(organization_id).exclude(kind=AccountKind.GRANT)[:MOST_ACCOUNTS], key=_rank)
    context = {
        "accounts": [(one, balance_of(one)) for one in accounts],
        "grants": grants_of(organization_id)[:MOST_ACCOUNTS],
        "account": account,
        "lines": lines[:PAGE_SIZE],
        "older": lines[PAGE_SIZE - 1].transfer_id if len(lines) > PAGE_SIZE else None,
        "is_first": text is None,
        "home": home,
    }
    return render(request, "portal/ledger.html", context)


def _account(request: SeatedRequest, organization_id: UUID) -> LedgerAccount | None:
    """The one asked for, else the first; None where there is none. NotFound for another organization's."""
    text = request.GET.get("account")
    if text is None:
        first = accounts_of(organization_id).exclude(kind=AccountKind.GRANT)[:MOST_ACCOUNTS]
        return min(first, key=_rank, default=None)
    try:
        if len(text) != 36:
            raise ValueError
        account_id = UUID(text)
    except ValueError:
        raise BadRequest("account: this is no account") from None
    return own_account(organization_id=organization_id, account_id=account_id)


def _rank(account: LedgerAccount) -> int:
    return _FIRST.index(AccountKind(account.kind)) if account.kind in _FIRST else len(_FIRST)
