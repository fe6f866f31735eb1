"""An organization's own extract of the books, with proofs; `extract_verifier.py` defines and verifies its lines."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from django.db import connection

from marketplace.ledger import extract_verifier as tree
from marketplace.ledger.models import LedgerAccount, Seal, SealedBalance, Transfer

_CHUNK: Final = 1_000
_MEMBER_BYTES: Final = 48
VERIFIER: Final = Path(tree.__file__)


def head() -> Seal | None:
    """The newest seal, which holds all others fast; None where nothing is sealed yet."""
    return Seal.objects.defer("members").order_by("-number").first()


def extract_lines(*, organization_id: UUID, now: datetime) -> Iterator[bytes]:
    """The extract, line by line, made while it is read: every seal's header, under it the organization's transfers
    with their proofs and its accounts' sums, at last what is not sealed yet.

    The other side of a transfer is a digest that says nothing without the account. Memory holds one seal, and the
    numbers of what is not sealed.
    """
    digest = hashlib.sha256()
    for line in _Extract(organization_id).lines(now):
        raw = tree.canonical(line).encode() + b"\n"
        if line["type"] == "end":
            raw = tree.canonical({**line, "sha256": digest.hexdigest()}).encode() + b"\n"
        digest.update(raw)
        yield raw


class _Extract:
    def __init__(self, organization_id: UUID) -> None:
        self.organization_id = organization_id
        self.accounts = list(LedgerAccount.objects.filter(organization_id=organization_id).order_by("id"))
        self.ids = {account.id for account in self.accounts}
        # Per account: number of transfers, debits, credits.
        self.sums: dict[UUID, list[int]] = {account.id: [0, 0, 0] for account in self.accounts}
        self.transfers = 0

    def lines(self, now: datetime) -> Iterator[dict[str, Any]]:
        newest = head()
        [(last_posted,)] = _rows("SELECT coalesce(max(number), 0) FROM ledger_transfer", [])
        yield {
            "type": "extract",
            "version": tree.VERSION,
            "organization_id": str(self.organization_id),
            "made_at": _instant(now),
            "head_number": newest.number if newest else 0,
            "head_digest": bytes(newest.digest).hex() if newest else tree.NO_DIGEST.hex(),
        }
        for account in self.accounts:
            yield {
                "type": "account",
                "account_id": str(account.id),
                "kind": account.kind,
                "currency": account.currency,
            }
        if newest is not None:
            yield from self._sealed(newest)
        after = newest.last_number if newest else 0
        for transfer in self._own(after + 1, last_posted):
            yield self._transfer(transfer, None, None)
        yield {
            "type": "end",
            "accounts": {str(account): sums for account, sums in self.sums.items()},
            "transfers": self.transfers,
        }

    def _sealed(self, newest: Seal) -> Iterator[dict[str, Any]]:
        number = 0
        while number < newest.number:
            seals = list(
                Seal.objects.defer("members")
                .filter(number__gt=number, number__lte=newest.number)
                .order_by("number")[:_CHUNK]
            )
            touched = self._touched(seals[0].number, seals[-1].number)
            for seal in seals:
                yield _seal(seal)
                if seal.number in touched:
                    yield from self._under(seal, touched[seal.number])
            number = seals[-1].number

    def _under(self, seal: Seal, balances: list[SealedBalance]) -> Iterator[dict[str, Any]]:
        members = bytes(Seal.objects.values_list("members", flat=True).get(number=seal.number))
        starts = range(0, len(members), _MEMBER_BYTES)
        places = {members[at : at + 16]: at // _MEMBER_BYTES for at in starts}
        levels = tree.tree_levels([members[at + 16 : at + _MEMBER_BYTES] for at in starts])
        for transfer in self._own(seal.first_number, seal.last_number):
            place = places[transfer.id.bytes]
            yield self._transfer(transfer, place, tree.proof_of(levels, place))
        leaves = [
            tree.account_leaf(*row)
            for row in _rows(
                "SELECT account_id, entries, debits_micros, credits_micros FROM ledger_sealedbalance "
                "WHERE seal_id = %s ORDER BY place",
                [seal.number],
            )
        ]
        levels = tree.tree_levels(leaves)
        for balance in balances:
            yield {
                "type": "balance",
                "account_id": str(balance.account_id),
                "entries": balance.entries,
                "debits_micros": balance.debits_micros,
                "credits_micros": balance.credits_micros,
                "place": balance.place,
                "account_count": len(leaves),
                "proof": [node.hex() for node in tree.proof_of(levels, balance.place)],
            }

    def _transfer(self, transfer: Transfer, place: int | None, proof: list[bytes] | None) -> dict[str, Any]:
        debit, credit = transfer.debit_account_id, transfer.credit_account_id
        balances = {}
        for account, side in ((debit, 1), (credit, 2)):
            if account in self.ids:
                sums = self.sums[account]
                sums[0] += 1
                sums[side] += transfer.amount_micros
                balances[str(account)] = sums[2] - sums[1]
        self.transfers += 1
        pays, is_paid = debit in self.ids, credit in self.ids
        return {
            "type": "transfer",
            "number": transfer.number,
            "transfer_id": str(transfer.id),
            "debit_account_id": str(debit) if pays else None,
            "credit_account_id": str(credit) if is_paid else None,
            "debit_party": None if pays else tree.debit_party(transfer.id, debit, transfer.hold_id).hex(),
            "credit_party": None if is_paid else tree.credit_party(transfer.id, credit).hex(),
            "amount_micros": transfer.amount_micros,
            "code": transfer.code,
            "hold_id": str(transfer.hold_id) if pays and transfer.hold_id else None,
            "reference_id": str(transfer.reference_id) if transfer.reference_id else None,
            "occurred_at": _instant(transfer.occurred_at),
            "created_at": _instant(transfer.created_at),
            "balances_micros": balances,
            "place": place,
            "proof": None if proof is None else [node.hex() for node in proof],
        }

    def _own(self, first: int, last: int) -> Iterator[Transfer]:
        """The organization's transfers with these numbers, in order.

        Which they are is asked once: numbers of several accounts become visible out of order, those of one do not.
        """
        numbers = [
            number
            for (number,) in _rows(
                "SELECT number FROM ledger_transfer WHERE debit_account_id = ANY (%(ids)s::uuid[])"
                " AND number BETWEEN %(first)s AND %(last)s UNION SELECT number FROM ledger_transfer"
                " WHERE credit_account_id = ANY (%(ids)s::uuid[]) AND number BETWEEN %(first)s AND %(last)s"
                " ORDER BY number",
                {"ids": list(self.ids), "first": first, "last": last},
            )
        ]
        for at in range(0, len(numbers), _CHUNK):
            yield from Transfer.objects.filter(number__in=numbers[at : at + _CHUNK]).order_by("number")

    def _touched(self, first: int, last: int) -> dict[int, list[SealedBalance]]:
        touched: dict[int, list[SealedBalance]] = defaultdict(list)
        for balance in SealedBalance.objects.filter(
            account_id__in=self.ids, seal_id__gte=first, seal_id__lte=last
        ).order_by("seal_id", "place"):
            touched[balance.seal_id].append(balance)
        return touched


def _seal(seal: Seal) -> dict[str, Any]:
    return {
        "type": "seal",
        "number": seal.number,
        "first_number": seal.first_number,
        "last_number": seal.last_number,
        "transfer_count": seal.transfer_count,
        "root": bytes(seal.root).hex(),
        "accounts_root": bytes(seal.accounts_root).hex(),
        "previous_digest": bytes(seal.previous_digest).hex(),
        "digest": bytes(seal.digest).hex(),
        "sealed_at": _instant(seal.sealed_at),
    }


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _rows(statement: str, parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
