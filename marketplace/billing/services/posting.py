"""Writes charges and earnings and moves their money, in one transaction of the caller."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.billing.lines import Line, LineKey, Share
from marketplace.billing.models import Charge, ChargeKind, Earning, Settlement
from marketplace.billing.services.books import Books as Books
from marketplace.billing.services.books import books_of as books_of
from marketplace.billing.services.books import buyer_account as buyer_account
from marketplace.billing.services.books import deferred_account as deferred_account
from marketplace.billing.services.books import fees_account as fees_account
from marketplace.billing.services.books import in_order
from marketplace.billing.services.books import pays_in_arrears as pays_in_arrears
from marketplace.billing.services.waterfall import (
    FROM_BOND,
    FROM_OPERATOR,
    OWED_BY_PROVIDER,
    TO_BOND,
    TO_OPERATOR,
    Occasion,
    bond_account,
    bonds_for,
    parts_of_refund,
    repaid_first,
)
from marketplace.contracts.models import Contract
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.selectors import balance_of
from marketplace.ledger.services import (
    AccountPlace,
    NewTransfer,
    account_ids,
    lock_books,
    post_transfers,
)
from marketplace.orders.models import Ask
from providers.models import Offering


def charge_id(parent: UUID, line: Line) -> UUID:
    code = f"{line.kind}:{line.rate_id}:{line.period_start.isoformat()}"
    if line.place is not None:
        # A rate of tiers has several lines in a run.
        code += f":{line.place.tier}:{line.place.since_numerator}:{line.numerator}"
    return derived_id(parent, code)


def earning_id(charge: UUID, offering_id: UUID) -> UUID:
    return derived_id(charge, f"earning:{offering_id}")


@dataclass(frozen=True, slots=True)
class Movement:
    """A line whose money is to move. Its charge's id derives from `parent`; `hold_id` is the open hold that pays it.

    `is_run` says whether its charge will belong to a settlement, `earned_at` when it is earned, if not where it begins.
    """

    parent: UUID
    line: Line
    books: Books
    hold_id: UUID | None = None
    is_run: bool = True
    earned_at: datetime | None = None

    @property
    def occasion(self) -> Occasion:
        return Occasion(self.books.contract_id, self.is_run, self.earned_at)


def move_lines(
    parent: UUID, lines: Sequence[Line], books: Books, *, holds: Mapping[LineKey, UUID], now: datetime
) -> None:
    """Post the grosses and fees of `lines`; `holds` says which open hold pays a line, by the line's key."""
    move([Movement(parent, line, books, hold_of(line, holds)) for line in lines], now=now)


def move(movements: Sequence[Movement], *, now: datetime) -> None:
    """Post the grosses and fees of lines, of whichever books, in one call of the ledger.

    What is given back, and a remedy, comes from the seller's account, then from his bond, then from the operator.
    Raises InsufficientFunds.
    """
    post_transfers(transfers_of(movements, now=now), now=now)


def transfers_of(movements: Sequence[Movement], *, now: datetime) -> list[NewTransfer]:
    """What `move` posts."""
    sellers = sellers_of({key for one in movements for key in one.line.shares})
    accounts = seller_accounts(sellers, movements[0].books.currency, now=now) if movements else {}
    given_back: dict[UUID, int] = defaultdict(int)
    earned: dict[UUID, int] = defaultdict(int)
    transfers: list[NewTransfer] = []
    for movement in movements:
        parent, line, books = movement.parent, movement.line, movement.books
        charge = charge_id(parent, line)
        for offering, share in sorted(line.shares.items()):
            earning, payable = earning_id(charge, offering), accounts[offering]
            if share.gross_micros > 0:
                to_market, to_bond = repaid_first(movement.occasion, line, offering, share)
                back = to_market + to_bond
                bond = (
                    bond_account(sellers[offering].organization_id, books.currency, now=now)
                    if to_bond
                    else payable
                )
                for name, credit, amount in (
                    ("gross", payable, share.gross_micros - back),
                    (TO_OPERATOR, books.operator, to_market),
                    (TO_BOND, bond, to_bond),
                ):
                    # Where the market pays in the buyer's place it has back what it bore.
                    if amount and credit != books.source_of(line):
                        transfers.append(
                            NewTransfer(
                                id=derived_id(earning, name),
                                debit_id=books.source_of(line),
                                credit_id=credit,
                                amount_micros=amount,
                                code=books.code_of(line),
                                hold_id=movement.hold_id,
                                reference_id=earning,
                            )
                        )
                earned[payable] += share.gross_micros - back - share.fee_micros
            elif share.gross_micros < 0:
                given_back[payable] -= share.gross_micros
            if share.fee_micros:
                transfers.append(_fee(earning, payable, share, books))
                if share.gross_micros < 0:
                    given_back[payable] += share.fee_micros
    # One call: the bounds of accounts hold for the sum of it, so a fee that comes back pays part of a refund, and what
    # a provider earns in this run pays his remedies first.
    shortfall = {
        account: max(0, amount - earned[account] - _available(account))
        for account, amount in given_back.items()
    }
    owners = {accounts[key]: one.organization_id for key, one in sellers.items() if one.ask_id is None}
    bonds = bonds_for(shortfall, owners, movements[0].books.currency, now=now) if movements else {}
    return transfers + _refunds(movements, accounts, shortfall, bonds)


def lock_movements(
    movements: Sequence[Movement],
    contract: Contract,
    *,
    books: Books | None = None,
    offerings: Iterable[UUID] = (),
    holds: Iterable[UUID] = (),
    now: datetime,
) -> None:
    """Take all that squaring a contract up moves in several calls: its holds, its buyer's grants, then the accounts.

    `offerings` are those that earn beside the lines' own, `books` the contract's where the caller has them. Both the
    balance and what was paid ahead are the contract's.
    """
    beside = set(offerings)
    sellers = sellers_of({key for one in movements for key in one.line.shares} | beside)
    all_books = [books or books_of(contract, now=now), *(one.books for one in movements)]
    accounts = {account for one in all_books for account in (one.source, one.buyer, one.fees)}
    accounts.update(seller_accounts(sellers, contract.currency, now=now).values())
    if beside or any(_may_give_back(one.line) for one in movements):
        # All settlements have the operator's account in common, so only those take it that may have to.
        accounts.update(one.operator for one in all_books)
        owners = {seller.organization_id for seller in sellers.values()}
        bonds = LedgerAccount.objects.filter(
            organization_id__in=owners, kind=AccountKind.BOND, currency=contract.currency
        )
        accounts.update(bonds.values_list("id", flat=True))
    lock_books(holds=holds, grants_of=[contract.organization_id], accounts=accounts)


def _may_give_back(line: Line) -> bool:
    """Whether bond or market may bear some of it, or have back what they bore."""
    return line.kind in (*OWED_BY_PROVIDER, ChargeKind.ADJUSTMENT) or any(
        share.gross_micros < 0 for share in line.shares.values()
    )


def record_lines(
    parent: UUID,
    lines: Sequence[Line],
    contract: Contract,
    *,
    settlement: Settlement | None,
    tax_held: Mapping[UUID, int],
    now: datetime,
    earned_at: datetime | None = None,
) -> list[Charge]:
    """Insert the charges and earnings of lines whose money has moved; earned where the line begins, if not said."""
    sellers = sellers_of({key for line in lines for key in line.shares})
    charges, earnings = rows_of_lines(
        parent,
        lines,
        contract,
        sellers=sellers,
        settlement=settlement,
        tax_held=tax_held,
        now=now,
        earned_at=earned_at,
    )
    Charge.objects.bulk_create(charges)
    Earning.objects.bulk_create(earnings)
    return charges


def rows_of_lines(
    parent: UUID,
    lines: Sequence[Line],
    contract: Contract,
    *,
    sellers: Mapping[UUID, Seller],
    settlement: Settlement | None,
    tax_held: Mapping[UUID, int],
    now: datetime,
    earned_at: datetime | None = None,
) -> tuple[list[Charge], list[Earning]]:
    """The charges and earnings of lines, unsaved."""
    charges, earnings = [], []
    for line in lines:
        charge = charge_id(parent, line)
        charges.append(
            Charge(
                id=charge,
                organization_id=contract.organization_id,
                contract=contract,
                settlement=settlement,
                kind=line.kind,
                grade_id=line.grade_id,
                rate_id=line.rate_id,
                period_start=line.period_start,
                period_end=line.period_end,
                numerator=line.numerator,
                estimated_numerator=line.estimated_numerator,
                rate_micros_per_mtok=line.rate_micros_per_mtok,
                amount_micros=line.amount_micros,
                tariff_month_id=line.place.month_id if line.place else None,
                tier=line.place.tier if line.place else None,
                since_numerator=line.place.since_numerator if line.place else None,
                tax_held_micros=tax_held.get(charge, 0),
                created_at=now,
            )
        )
        earnings += [
            new_earning(
                charge,
                sellers[key].offering_id,
                share,
                sellers[key].organization_id,
                earned_at or line.period_start,
                now,
                ask_id=sellers[key].ask_id,
            )
            for key, share in sorted(line.shares.items())
        ]
    return charges, earnings


def new_earning(
    charge: UUID,
    offering: UUID,
    share: Share,
    organization: UUID,
    period_start: datetime,
    now: datetime,
    *,
    ask_id: UUID | None = None,
) -> Earning:
    return Earning(
        id=earning_id(charge, ask_id or offering),
        charge_id=charge,
        organization_id=organization,
        offering_id=offering,
        ask_id=ask_id,
        numerator=share.numerator,
        gross_micros=share.gross_micros,
        fee_micros=share.fee_micros,
        period_start=period_start,
        created_at=now,
    )


@dataclass(frozen=True, slots=True)
class Seller:
    """Who earns a share of a line: the provider of the offering, or the buyer who released lots of it (`ask_id`)."""

    organization_id: UUID
    offering_id: UUID
    ask_id: UUID | None = None
    # The committed contract that the lots were released from.
    contract_id: UUID | None = None


def sellers_of(keys: set[UUID]) -> dict[UUID, Seller]:
    """By the key of a share: an offering, or the ask of a release."""
    found = {
        offering: Seller(organization, offering)
        for offering, organization in provider_organizations(keys).items()
    }
    if len(found) < len(keys):
        asks = Ask.objects.filter(id__in=keys - found.keys()).values_list(
            "id", "release__organization_id", "offering_id", "release__contract_id"
        )
        for ask, organization, offering, contract in asks:
            assert organization is not None, "only released lots are sold by their asks"
            found[ask] = Seller(organization, offering, ask, contract)
    return found


def seller_accounts(sellers: Mapping[UUID, Seller], currency: str, *, now: datetime) -> dict[UUID, UUID]:
    """Where a share's money goes: a provider's payable account, a reselling buyer's prepaid balance."""
    wanted = {
        key: AccountPlace(
            seller.organization_id,
            AccountKind.PAYABLE if seller.ask_id is None else AccountKind.PREPAID,
            currency,
        )
        for key, seller in sellers.items()
    }
    accounts = account_ids(in_order(wanted.values()), now=now)
    return {key: accounts[place] for key, place in wanted.items()}


def provider_organizations(offering_ids: set[UUID]) -> dict[UUID, UUID]:
    """The organization that earns for each offering."""
    rows = Offering.objects.filter(id__in=offering_ids).values_list("id", "host__provider__organization_id")
    return dict(rows)


def hold_of(line: Line, holds: Mapping[LineKey, UUID]) -> UUID | None:
    """No hold was taken for a service credit that shrinks: it comes back out of the balance."""
    return None if line.kind == ChargeKind.SERVICE_CREDIT else holds.get(line.key)


def _fee(earning: UUID, payable: UUID, share: Share, books: Books) -> NewTransfer:
    debit, credit = (payable, books.fees) if share.fee_micros > 0 else (books.fees, payable)
    return NewTransfer(
        id=derived_id(earning, "fee"),
        debit_id=debit,
        credit_id=credit,
        amount_micros=abs(share.fee_micros),
        code="fee",
        reference_id=earning,
    )


def _refunds(
    movements: Sequence[Movement],
    accounts: Mapping[UUID, UUID],
    shortfall: dict[UUID, int],
    bonds: Mapping[UUID, tuple[UUID, int]],
) -> list[NewTransfer]:
    refunds: list[NewTransfer] = []
    left = dict(bonds)
    for movement in movements:
        line, books = movement.line, movement.books
        charge = charge_id(movement.parent, line)
        for offering, share in sorted(line.shares.items()):
            if share.gross_micros >= 0:
                continue
            account, earning = accounts[offering], earning_id(charge, offering)
            uncovered = min(-share.gross_micros, shortfall[account])
            shortfall[account] -= uncovered
            # The waterfall: what the provider has to come, his bond, then the market.
            bond, lies_there = left.get(account, (account, 0))
            own, by_bond, by_market = parts_of_refund(
                -share.gross_micros, uncovered_micros=uncovered, bond_micros=lies_there
            )
            left[account] = (bond, lies_there - by_bond)
            parts = (
                ("gross", account, own),
                (FROM_BOND, bond, by_bond),
                (FROM_OPERATOR, books.operator, by_market),
            )
            refunds += [
                NewTransfer(
                    id=derived_id(earning, code),
                    debit_id=debit,
                    credit_id=books.source_of(line),
                    amount_micros=amount,
                    code=line.kind if line.kind in OWED_BY_PROVIDER else "adjustment",
                    reference_id=earning,
                )
                for code, debit, amount in parts
                if amount
            ]
    return refunds


def _available(account: UUID) -> int:
    return balance_of(LedgerAccount.objects.get(pk=account)).available_micros
