"""Balances at an instant and statements, against sums in plain Python; and through REST."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.accounts.services import ensure_operator
from marketplace.api.exporting import text_cell
from marketplace.errors import NotFound
from marketplace.ids import uuid7
from marketplace.ledger.history import balances_at, own_account, statement, statement_page
from marketplace.ledger.models import LedgerAccount, Transfer
from marketplace.ledger.sealing import seal_transfers
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from tests.cast import Party
from tests.conftest import TestDatabase
from tests.ledger.books import Books, make_books

HOUR = timedelta(hours=1)


def account_of(account: UUID) -> LedgerAccount:
    return LedgerAccount.objects.get(pk=account)


def plain_balance(account: LedgerAccount, at: datetime) -> int:
    """What the books said, the plainest way; the processor's grows by debits."""
    micros = 0
    for transfer in Transfer.objects.filter(occurred_at__lt=at):
        micros += transfer.amount_micros * (
            (transfer.credit_account_id == account.id) - (transfer.debit_account_id == account.id)
        )
    return -micros if account.kind == "processor" else micros


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 9), st.sampled_from(["post", "post", "seal"])),
        min_size=5,
        max_size=14,
    )
)
def test_balances_at_any_instant_are_the_sum_of_what_occurred_before(
    history_books: Books, moves: list[tuple[int, int, str]], now: datetime
) -> None:
    """Whatever was sealed when, and in whatever order it was posted."""
    books = history_books
    for hour, amount, move in moves:
        if move == "seal":
            seal_transfers(now=now, most=3)
            continue
        post_transfers(
            [NewTransfer(uuid7(), books.processor, books.prepaid, amount, "top_up")], now=now + hour * HOUR
        )
    accounts = [account_of(books.prepaid), account_of(books.processor), account_of(books.fees)]
    for hour in range(-1, 15):
        at = now + hour * HOUR
        assert balances_at(accounts, at=at) == {
            account.id: plain_balance(account, at) for account in accounts
        }


@pytest.fixture
def history_books(committed_db: TestDatabase, now: datetime) -> Books:
    return make_books(now)


def test_running_balances_follow_the_order_of_posting(sealed_books: Books) -> None:
    account = account_of(sealed_books.prepaid)
    lines = list(statement(account, start=None, end=None))
    assert [line.amount_micros for line in lines if line.amount_micros in (1_000, -30, -5, -6)] == [
        1_000,
        -30,
        -5,
        -6,
    ]
    running = 0
    for line in lines:
        running += line.amount_micros
        assert line.balance_micros == running
    assert running == 949
    newest_first = statement_page(account, before=None, limit=50)
    assert newest_first == lines[::-1]
    paged, before = [], None
    while page := statement_page(account, before=before, limit=2):
        paged += page
        before = page[-1].transfer_id
    assert paged == newest_first


def test_what_the_processor_holds_grows_by_debits(sealed_books: Books) -> None:
    [line] = statement(account_of(sealed_books.processor), start=None, end=None)
    assert (line.amount_micros, line.balance_micros) == (1_000, 1_000)


def test_a_statement_of_a_span_keeps_the_books_balances(books: Books, now: datetime) -> None:
    for hour, amount in ((0, 10), (2, 20), (1, 30), (3, 40)):
        transfer = NewTransfer(uuid7(), books.processor, books.prepaid, amount, "top_up")
        post_transfers([transfer], now=now + hour * HOUR)
    found = list(statement(account_of(books.prepaid), start=now + HOUR, end=now + 3 * HOUR))
    assert [(line.amount_micros, line.balance_micros) for line in found] == [(20, 30), (30, 60)]


def test_a_page_costs_the_same_however_long_the_history(books: Books, now: datetime) -> None:
    account = account_of(books.prepaid)

    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            assert statement_page(account, before=None, limit=5)
        return len(captured)

    books.fund(1)
    few = queries()
    for _ in range(40):
        books.fund(1)
    assert queries() == few


def test_anothers_account_is_not_found(books: Books) -> None:
    owner = account_of(books.prepaid).organization_id
    assert own_account(organization_id=owner, account_id=books.prepaid).kind == "prepaid"
    with pytest.raises(NotFound):
        own_account(organization_id=owner, account_id=books.payable)


@pytest.fixture
def acme_account(acme: Party, now: datetime) -> UUID:
    """acme's prepaid balance after two top-ups and one charge whose code looks like a formula."""
    operator = ensure_operator(now=now)
    prepaid = account_id(organization_id=acme.id, kind="prepaid", currency="USD", now=now)
    processor = account_id(organization_id=operator.id, kind="processor", currency="USD", now=now)
    fees = account_id(organization_id=operator.id, kind="fees", currency="USD", now=now)
    post_transfers([NewTransfer(uuid7(), processor, prepaid, 2_000_000, "top_up")], now=now)
    post_transfers([NewTransfer(uuid7(), prepaid, fees, 500_001, "=SUM(A1)")], now=now)
    post_transfers([NewTransfer(uuid7(), processor, prepaid, 3, "top_up")], now=now + timedelta(days=1))
    return prepaid


def test_rest_shows_running_balances_in_pages(acme: Party, acme_account: UUID) -> None:
    first = acme.api.get(f"/api/v1/ledger/accounts/{acme_account}/statement?page_size=2").json()
    assert [(item["amount_micros"], item["balance_micros"]) for item in first["items"]] == [
        (3, 1_500_002),
        (-500_001, 1_499_999),
    ]
    assert first["items"][1]["amount"] == "-0.500001"
    assert first["items"][1]["balance"] == "1.499999"
    rest = acme.api.get(
        f"/api/v1/ledger/accounts/{acme_account}/statement?page_size=2&cursor={first['next']}"
    ).json()
    assert [item["balance_micros"] for item in rest["items"]] == [2_000_000]
    assert rest["next"] is None


def test_csv_opens_as_numbers_and_never_as_a_formula(acme: Party, acme_account: UUID, now: datetime) -> None:
    answer = acme.api.get(
        f"/api/v1/ledger/accounts/{acme_account}/statement",
        {"format": "csv", "until": (now + timedelta(hours=1)).isoformat()},
    )
    assert answer["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))  # type: ignore[attr-defined]
    assert [row["balance"] for row in rows] == ["2.00", "1.499999"]
    assert [row["code"] for row in rows] == ["top_up", "'=SUM(A1)"]
    assert rows[1]["amount_micros"] == "-500001"


@pytest.mark.parametrize(
    "first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_text_that_any_spreadsheet_takes_for_a_formula_is_kept_text(first: str) -> None:
    """Full-width signs too: what an input method of an East Asian language writes is read as the narrow one."""
    assert text_cell(f"{first}SUM(A1)") == f"'{first}SUM(A1)"
    assert text_cell(f"a{first}b") == f"a{first}b"


def test_rest_tells_the_balance_at_an_instant(acme: Party, acme_account: UUID, now: datetime) -> None:
    def at(moment: datetime) -> int:
        answer = acme.api.get("/api/v1/ledger/balances-at", {"at": moment.isoformat()}).json()
        [found] = [item for item in answer["items"] if item["account_id"] == str(acme_account)]
        return int(found["posted_micros"])

    assert [at(now), at(now + HOUR), at(now + timedelta(days=2))] == [0, 1_499_999, 1_500_002]


def test_rest_gives_the_extract_and_the_program_that_verifies_it(acme: Party, acme_account: UUID) -> None:
    extract = b"".join(acme.api.get("/api/v1/ledger/extract").streaming_content)  # type: ignore[attr-defined]
    program = acme.api.get("/api/v1/ledger/extract/verifier").content
    names: dict[str, object] = {"__name__": "verify"}
    exec(compile(program, "verify.py", "exec"), names)  # noqa: S102  (what a customer runs)
    counted = names["verify"](extract.splitlines(keepends=True))  # type: ignore[operator]
    assert (counted.transfers, counted.unsealed) == (3, 3)
    assert json.loads(extract.splitlines()[0])["organization_id"] == str(acme.id)
    assert acme.api.get("/api/v1/ledger/seals/head").json() == {
        "number": 0,
        "digest": None,
        "sealed_at": None,
    }


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("format=xml", "format"),
        ("since=2026-03-10T12:00:00Z", "since"),
        ("until=2026-03-10T12:00:00Z", "until"),
        ("format=csv&since=2026-03-11T00:00:00Z&until=2026-03-11T00:00:00Z", "since"),
        ("since=yesterday&format=csv", "since"),
        ("cursor=x", "cursor"),
        ("page_size=0", "page_size"),
        ("surprise=1", "surprise"),
    ],
)
def test_bad_questions_name_the_parameter(acme: Party, acme_account: UUID, query: str, field: str) -> None:
    answer = acme.api.get(f"/api/v1/ledger/accounts/{acme_account}/statement?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_an_instant_must_be_one(acme: Party) -> None:
    answer = acme.api.get("/api/v1/ledger/balances-at?at=noon")
    assert (answer.status_code, answer.json()["field"]) == (422, "at")


def test_mallory_reads_no_statement(mallory: Party, acme_account: UUID) -> None:
    for form in ("json", "csv", "ndjson"):
        answer = mallory.api.get(f"/api/v1/ledger/accounts/{acme_account}/statement?format={form}")
        assert answer.status_code == 404
