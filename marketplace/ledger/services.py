"""Everything that moves or sets aside money. Each service is one call of one SQL function (`sql/`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import DatabaseError, connection, transaction

from marketplace.arrays import bigint_array, nullable_uuid_array, text_array, uuid_array
from marketplace.errors import Conflict, DomainError, InvalidInput, NotFound, constraint_of, sqlstate_of
from marketplace.ledger.models import AccountKind, Hold
from marketplace.packed import packed_bigints, packed_cursor, packed_uuids

MAX_AMOUNT_MICROS: Final = 2**63 - 1
_POST: Final = (
    "SELECT ledger_post_transfers("
    "%s::uuid[], %s::uuid[], %s::uuid[], %s::bigint[], %s::text[], %s::uuid[], %s::uuid[], %s)"
)


# Most calls post one: to write down eight lists of one element would take the client four times as long.
_POST_ONE: Final = (
    "SELECT ledger_post_transfers(ARRAY[%s]::uuid[], ARRAY[%s]::uuid[], ARRAY[%s]::uuid[], ARRAY[%s]::bigint[], "
    "ARRAY[%s]::text[], ARRAY[%s]::uuid[], ARRAY[%s]::uuid[], %s)"
)


class InsufficientFunds(DomainError):
    """An account that must not go negative would; nothing was posted or held."""

    code = "insufficient_funds"
    http_status = 402
    title = "Insufficient funds"


class TransferConflict(Conflict):
    """A transfer of this id was posted on other terms."""

    code = "transfer_conflict"


class GrantEnded(Conflict):
    """The grant has expired or was revoked, or has not expired yet."""

    code = "grant_ended"


class HoldConflict(Conflict):
    """The hold has ended, belongs elsewhere, exists on other terms, or does not have that much left."""

    code = "hold_conflict"


@dataclass(frozen=True, slots=True)
class Carving:
    """`amount_micros` out of the open hold `source_id` into a hold of its own; `id` is the caller's.

    Ids may be text, as the database writes them.
    """

    id: UUID | str
    source_id: UUID | str
    amount_micros: int


@dataclass(frozen=True, slots=True)
class NewTransfer:
    """One movement to post. `id` is the caller's and makes a retry safe; `hold_id` captures that hold."""

    id: UUID
    debit_id: UUID
    credit_id: UUID
    amount_micros: int
    code: str
    hold_id: UUID | None = None
    reference_id: UUID | None = None


def account_id(
    *,
    organization_id: UUID,
    kind: AccountKind | str,
    currency: str,
    reference_id: UUID | None = None,
    now: datetime,
) -> UUID:
    """The one account of these four, made now where there is none.

    prepaid, receivable, payable, deferred and bond must not go negative (beyond their overdraft limit); the market's
    own accounts (fees, tax, rounding, processor, operator) have no bound.
    """
    assert kind in AccountKind.values, f"unknown kind of account: {kind}"
    assert len(currency) == 3
    found: UUID = call(
        "SELECT ledger_account_id(%s, %s, %s, %s, %s)",
        (organization_id, str(kind), currency, reference_id, now),
    )
    return found


@dataclass(frozen=True, slots=True)
class AccountPlace:
    """What `account_id` asks for; `reference_id` where an organization has several of the kind."""

    organization_id: UUID
    kind: AccountKind
    currency: str
    reference_id: UUID | None = None


def account_ids(places: Iterable[AccountPlace], *, now: datetime) -> dict[AccountPlace, UUID]:
    """`account_id` for each of them in one round trip. Those that do not exist are made in the order given."""
    wanted = list(dict.fromkeys(places))
    if not wanted:
        return {}
    statement = (
        "SELECT array_agg(found.id ORDER BY found.n) FROM ("
        " SELECT a.n, ledger_account_id(a.organization, a.kind, a.currency, a.reference, %s) AS id"
        " FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::uuid[]) WITH ORDINALITY"
        " AS a (organization, kind, currency, reference, n) ORDER BY a.n) AS found"
    )
    found = call(
        statement,
        (
            now,
            uuid_array(place.organization_id for place in wanted),
            text_array(str(place.kind) for place in wanted),
            text_array(place.currency for place in wanted),
            nullable_uuid_array(place.reference_id for place in wanted),
        ),
        may_be_refused=False,
    )
    return dict(zip(wanted, found, strict=True))


def set_overdraft_limit(*, account_id: UUID, limit_micros: int) -> None:
    """How far below zero the account may go (a credit line). Raises InsufficientFunds when it is lower already."""
    check_amount(limit_micros, least=0, field="limit_micros")
    call("SELECT ledger_set_overdraft_limit(%s, %s)", (account_id, limit_micros))


def set_credit_line(*, account_id: UUID, limit_micros: int) -> None:
    """How far below zero a receivable account may go from now on. Below what is used already nothing new fits, and the
    line follows what is paid; nothing that is owed or held ends.
    """
    check_amount(limit_micros, least=0, field="limit_micros")
    call("SELECT ledger_set_credit_line(%s, %s)", (account_id, limit_micros))


def post_transfers(transfers: Sequence[NewTransfer], *, now: datetime) -> int:
    """Post all of them or none; how many are new. A retry with the same ids and terms returns 0.

    Raises InsufficientFunds, TransferConflict, HoldConflict, NotFound (account), InvalidInput (amount, currencies).
    """
    if not transfers:
        return 0
    for transfer in transfers:
        check_amount(transfer.amount_micros, least=1, field="amount_micros")
        assert transfer.code, "a transfer says what it is for"
        assert transfer.debit_id != transfer.credit_id, "a transfer is between two accounts"
    if len(transfers) == 1:
        [one] = transfers
        terms = (
            one.id,
            one.debit_id,
            one.credit_id,
            one.amount_micros,
            one.code,
            one.hold_id,
            one.reference_id,
        )
        return int(call(_POST_ONE, (*terms, now)))
    posted: int = call(
        _POST,
        (
            uuid_array(transfer.id for transfer in transfers),
            uuid_array(transfer.debit_id for transfer in transfers),
            uuid_array(transfer.credit_id for transfer in transfers),
            bigint_array(transfer.amount_micros for transfer in transfers),
            text_array(transfer.code for transfer in transfers),
            nullable_uuid_array(transfer.hold_id for transfer in transfers),
            nullable_uuid_array(transfer.reference_id for transfer in transfers),
            now,
        ),
    )
    return posted


def lock_books(
    *, holds: Iterable[UUID] = (), grants_of: Iterable[UUID] = (), accounts: Iterable[UUID] = ()
) -> None:
    """Take everything that the caller's transaction will touch in several calls of the ledger, in the one order.

    Call it before the first of them. `grants_of` are organizations whose grants are drawn or given. Whoever locks call
    by call may meet another who does so in a deadlock (docs/locking.md).
    """
    assert connection.in_atomic_block, "locks are of a transaction"
    call(
        "SELECT ledger_lock(%s::uuid[], %s::uuid[], %s::uuid[])",
        (uuid_array(holds), uuid_array(grants_of), uuid_array(accounts)),
        may_be_refused=False,
    )


def open_hold(
    *,
    id: UUID,  # noqa: A002  (the caller's id, as everywhere in the ledger)
    account_id: UUID,
    amount_micros: int,
    code: str,
    reference_id: UUID | None = None,
    expires_at: datetime | None = None,
    now: datetime,
) -> None:
    """Set money aside. The same id on the same terms again: nothing. Raises InsufficientFunds, HoldConflict."""
    check_amount(amount_micros, least=0, field="amount_micros")
    call(
        "SELECT ledger_open_hold(%s, %s, %s, %s, %s, %s, %s)",
        (id, account_id, amount_micros, code, reference_id, expires_at, now),
    )


@dataclass(frozen=True, slots=True)
class NewHold:
    """What `open_hold` is asked for, of a hold that does not expire. `id` is the caller's and makes a retry safe."""

    id: UUID
    account_id: UUID
    amount_micros: int
    reference_id: UUID


def open_holds(holds: Sequence[NewHold], *, code: str, now: datetime) -> None:
    """`open_hold` for each of them, in id order, in one round trip: all or none.

    Lock their accounts before (`lock_books`). Raises InsufficientFunds, HoldConflict, NotFound (account).
    """
    if not holds:
        return
    for hold in holds:
        check_amount(hold.amount_micros, least=0, field="amount_micros")
    ordered = sorted(holds, key=lambda hold: hold.id)
    statement = (
        "SELECT ledger_open_hold(h.id, h.account, h.amount, %s, h.reference, NULL, %s)"
        " FROM unnest(%s::uuid[], %s::uuid[], %s::bigint[], %s::uuid[]) AS h (id, account, amount, reference)"
        " ORDER BY h.id"
    )
    call(
        statement,
        (
            code,
            now,
            uuid_array(hold.id for hold in ordered),
            uuid_array(hold.account_id for hold in ordered),
            bigint_array(hold.amount_micros for hold in ordered),
            uuid_array(hold.reference_id for hold in ordered),
        ),
    )


def change_hold(*, id: UUID, delta_micros: int, now: datetime) -> None:  # noqa: A002
    """Grow or shrink an open hold, never below what was captured. Not idempotent: one call is one change.

    Raises InsufficientFunds, HoldConflict, NotFound.
    """
    check_amount(abs(delta_micros), least=0, field="delta_micros")
    call("SELECT ledger_change_hold(%s, %s, %s)", (id, delta_micros, now))


def close_hold(*, id: UUID, status: Hold.Status | str, now: datetime) -> None:  # noqa: A002
    """End it posted, voided or expired and give back the rest. Again with the same status: nothing.

    Raises HoldConflict when it ended otherwise, NotFound.
    """
    assert status in Hold.Status.values
    assert status != Hold.Status.OPEN
    call("SELECT ledger_close_hold(%s, %s, %s)", (id, str(status), now))


def close_holds(statuses: Mapping[UUID, Hold.Status | str], *, now: datetime) -> None:
    """`close_hold` for each of them, in id order, in one round trip: all or none."""
    if statuses:
        ids = sorted(statuses)
        statement = (
            "SELECT ledger_close_hold(h.id, h.status, %s) FROM unnest(%s::uuid[], %s::text[]) AS h (id, status)"
            " ORDER BY h.id"
        )
        call(statement, (now, uuid_array(ids), text_array(str(statuses[hold]) for hold in ids)))


def raise_holds(amounts_micros: Mapping[UUID, int] | Mapping[str, int], *, now: datetime) -> set[UUID]:
    """Bring open holds up to these amounts, by id or its text; those returned were left as they were for lack of money.

    A hold that is as large already stays. An account that cannot pay for all of its holds pays in the order given, and
    one that does not fit does not stop a smaller one behind it. Doing it again changes nothing more.
    Raises HoldConflict when one has ended, NotFound; then none is changed.
    """
    if not amounts_micros:
        return set()
    for amount_micros in amounts_micros.values():
        check_amount(amount_micros, least=0, field="amount_micros")
    statement = "SELECT ledger_raise_holds(%s::uuid[], %s::bigint[], %s)"
    places = (packed_uuids(amounts_micros), packed_bigints(amounts_micros.values()), now)
    return set(call(statement, places, cursor_of=packed_cursor))


def carve_holds(
    carvings: Sequence[Carving], *, code: str, reference_id: UUID | None = None, now: datetime
) -> int:
    """Open new holds out of what others have left, all or none; how many are new. Balances do not change.

    The same ids on the same terms again carve nothing. Raises HoldConflict when a source has ended or does not have
    that much left, or a hold of an id exists on other terms; NotFound (source).
    """
    if not carvings:
        return 0
    for carving in carvings:
        check_amount(carving.amount_micros, least=0, field="amount_micros")
    carved: int = call(
        "SELECT ledger_carve_holds(%s::uuid[], %s::uuid[], %s::bigint[], %s, %s, %s)",
        (
            packed_uuids(carving.source_id for carving in carvings),
            packed_uuids(carving.id for carving in carvings),
            packed_bigints(carving.amount_micros for carving in carvings),
            code,
            reference_id,
            now,
        ),
        cursor_of=packed_cursor,
    )
    return carved


def expire_holds(*, now: datetime, limit: int = 1000) -> int:
    """End up to `limit` open holds whose `expires_at` has come; how many. Several workers share the work."""
    expired: int = call("SELECT ledger_expire_holds(%s, %s)", (now, limit))
    return expired


def call(
    statement: str,
    parameters: tuple[Any, ...],
    *,
    may_be_refused: bool = True,
    cursor_of: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Any:
    """One statement is one transaction of its own: BEGIN and COMMIT around it would cost two more round trips.

    Inside a caller's transaction it has a savepoint, so that the caller may catch the refusal and go on; not where
    there is nothing to refuse.
    """
    together: AbstractContextManager[None] = (
        transaction.atomic() if connection.in_atomic_block and may_be_refused else nullcontext()
    )
    with _facts(), together, (cursor_of or connection.cursor)() as cursor:
        cursor.execute(statement, parameters)
        row = cursor.fetchone()
        assert row is not None
        return row[0]


@contextmanager
def _facts() -> Iterator[None]:
    """The database's refusals as facts of the domain."""
    try:
        yield
    except DatabaseError as error:
        fact = fact_of(sqlstate=sqlstate_of(error), constraint=constraint_of(error))
        if fact is None:
            raise
        raise fact from error


def fact_of(*, sqlstate: str, constraint: str) -> DomainError | None:
    """What a refusal of the ledger's functions means; None when it is not one of theirs."""
    match sqlstate, constraint:
        case "23514", "ledger_account_debits_must_not_exceed_credits":
            return InsufficientFunds("the balance does not cover this amount")
        case "23514", "ledger_hold_captured_within_amount":
            return HoldConflict("the hold does not have that much left")
        case "TY409", "ledger_transfer_terms":
            return TransferConflict("a transfer of this id was posted on other terms")
        case "TY409", "ledger_grant_terms":
            return TransferConflict("a grant of this id exists on other terms")
        case "TY409", "ledger_grant_ended":
            return GrantEnded("the grant has ended, or has not expired yet")
        case "TY409", "ledger_grant_refund_terms":
            return TransferConflict("a refund of this id was made on other terms")
        case "TY409", "ledger_grant_refund_within_free":
            return InvalidInput("must not be more than what is unused of the grant", field="amount_micros")
        case "TY409", "ledger_hold_terms":
            return HoldConflict("a hold of this id exists on other terms")
        case "TY409", _:
            return HoldConflict(
                "the hold has ended, belongs to another account, or does not have that much left"
            )
        case "TY404", _:
            return NotFound("no such ledger account or hold")
        case "TY422", _:
            return InvalidInput("the two accounts have different currencies")
        case "22003", _:
            return InvalidInput("the amount is too large for the books", field="amount_micros")
    return None


def check_amount(amount_micros: int, *, least: int, field: str) -> None:
    if type(amount_micros) is not int or not least <= amount_micros <= MAX_AMOUNT_MICROS:
        raise InvalidInput(
            f"{field} must be a whole number between {least} and {MAX_AMOUNT_MICROS}", field=field
        )
