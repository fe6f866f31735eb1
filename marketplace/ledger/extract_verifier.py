#!/usr/bin/env python3
"""Verifies an organization's extract of the books, offline: `python verify.py extract.ndjson [--head DIGEST]`.

Needs nothing but Python 3.11 or newer. What it proves: every sealed transfer of the extract lies, unchanged, in a
seal; the seals chain from the first to the head; each account's number of transfers, debits and credits are those that
the seals commit to, so that none is missing or added up to the last seal that names the account; running balances
add up; and no byte of the file was changed. Give `--head` with a digest that you had from the market at another time or
by another way: without it you know only that the file agrees with itself.

Trees are those of RFC 6962, section 2.1, over SHA-256: a leaf is sha256(00 || bytes), a node
sha256(01 || left || right).
Integers are 8 bytes, big-endian; ids are 16 bytes; instants are microseconds since 1970 (UTC).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

VERSION = 1
NO_DIGEST = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_sha256 = hashlib.sha256


class BrokenExtract(Exception):
    """The extract does not hold; says in which line and why."""


def debit_party(transfer_id: UUID, account_id: UUID, hold_id: UUID | None) -> bytes:
    """Stands for the debited account: whoever knows the account can check it, nobody else can tell whose it is."""
    hold = b"\x00" if hold_id is None else b"\x01" + hold_id.bytes
    return _sha256(b"\x03" + transfer_id.bytes + account_id.bytes + hold).digest()


def credit_party(transfer_id: UUID, account_id: UUID) -> bytes:
    """Stands for the credited account."""
    return _sha256(b"\x04" + transfer_id.bytes + account_id.bytes).digest()


def transfer_leaf(
    *,
    number: int,
    transfer_id: UUID,
    debit: bytes,
    credit: bytes,
    amount_micros: int,
    occurred_at: datetime,
    created_at: datetime,
    reference_id: UUID | None,
    code: str,
) -> bytes:
    """The leaf of one transfer; `debit` and `credit` are its parties' digests."""
    times = ((occurred_at - _EPOCH) // _MICROSECOND, (created_at - _EPOCH) // _MICROSECOND)
    head = struct.pack(
        ">q16s32s32sqqq", number, transfer_id.bytes, debit, credit, amount_micros, times[0], times[1]
    )
    reference = b"\x00" if reference_id is None else b"\x01" + reference_id.bytes
    return _sha256(b"\x00" + head + reference + code.encode()).digest()


def account_leaf(account_id: UUID, entries: int, debits_micros: int, credits_micros: int) -> bytes:
    """The leaf of an account's sums since the beginning, in the tree of the accounts that a seal touches."""
    sums = struct.pack(">qqq", entries, debits_micros, credits_micros)
    return _sha256(b"\x00" + account_id.bytes + sums).digest()


def seal_digest(
    *,
    number: int,
    first_number: int,
    last_number: int,
    transfer_count: int,
    root: bytes,
    accounts_root: bytes,
    previous_digest: bytes,
    sealed_at: datetime,
) -> bytes:
    """What the next seal, and whoever keeps a head, holds fast."""
    head = struct.pack(">qqqq", number, first_number, last_number, transfer_count)
    time = struct.pack(">q", (sealed_at - _EPOCH) // _MICROSECOND)
    return _sha256(b"\x02" + head + root + accounts_root + previous_digest + time).digest()


def tree_levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All nodes, leaves first, root last. RFC 6962's split at the largest power of two, made from below."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        level = [_sha256(b"\x01" + below[i] + below[i + 1]).digest() for i in range(0, len(below) - 1, 2)]
        if len(below) % 2:
            level.append(below[-1])
        levels.append(level)
    return levels


def root_of(leaves: Sequence[bytes]) -> bytes:
    return tree_levels(leaves)[-1][0] if leaves else _sha256(b"").digest()


def proof_of(levels: Sequence[Sequence[bytes]], place: int) -> list[bytes]:
    """The nodes beside the way from leaf `place` up to the root."""
    path = []
    for level in levels[:-1]:
        beside = place ^ 1
        if beside < len(level):
            path.append(level[beside])
        place //= 2
    return path


def root_by(leaf: bytes, place: int, count: int, proof: Iterable[bytes]) -> bytes | None:
    """The root that this proof leads to from leaf `place` of `count`; None where its length is wrong."""
    node, rest = leaf, iter(proof)
    if not 0 <= place < count:
        return None
    while count > 1:
        if place ^ 1 < count:
            beside = next(rest, None)
            if beside is None:
                return None
            node = _sha256(b"\x01" + (beside + node if place % 2 else node + beside)).digest()
        place, count = place // 2, (count + 1) // 2
    return node if next(rest, None) is None else None


def canonical(line: dict[str, Any]) -> str:
    """The one spelling of a line."""
    return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


class Verifier:
    """Takes an extract's lines one by one; memory does not grow with the number of transfers.

    Raises BrokenExtract at the first line that does not hold.
    """

    def __init__(self, head: bytes | None = None) -> None:
        self.wanted_head = head
        self.transfers = 0
        self.unsealed = 0
        self._accounts: dict[UUID, list[int]] = {}
        self._seal: dict[str, Any] | None = None
        self._touched: set[UUID] = set()
        self._number = 0
        self._place = -1
        self._digests_seen = head is None
        self._said_head: tuple[int, str] | None = None
        self._hash = _sha256()
        self._line = 0
        self._ended = False
        self._opened = False
        self._takers: dict[str, Callable[[dict[str, Any]], None]] = {
            "extract": self._extract,
            "account": self._account,
            "seal": self._take_seal,
            "transfer": self._transfer,
            "balance": self._balance,
            "end": self._end,
        }

    def take(self, raw: bytes) -> None:
        self._line += 1
        self._demand(not self._ended, "something follows the end")
        self._demand(raw.endswith(b"\n"), "the line is cut short")
        try:
            line = json.loads(raw)
            kind = line["type"]
            self._demand(raw == canonical(line).encode() + b"\n", "the line is not in its one spelling")
            self._demand(self._opened or kind == "extract", "an extract begins with its head line")
            self._takers[kind](line)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
            raise BrokenExtract(f"line {self._line}: not a line of an extract ({error})") from error
        self._hash.update(raw)

    def finish(self) -> None:
        self._demand(self._ended, "the extract has no end")

    def _extract(self, line: dict[str, Any]) -> None:
        self._demand(not self._opened, "a second head line")
        self._demand(line["version"] == VERSION, f"this verifier reads version {VERSION}")
        UUID(line["organization_id"]), _instant(line["made_at"])
        self._said_head = (line["head_number"], line["head_digest"])
        self._opened = True

    def _account(self, line: dict[str, Any]) -> None:
        account = UUID(line["account_id"])
        self._demand(account not in self._accounts and self._seal is None, "an account named twice or late")
        self._accounts[account] = [0, 0, 0]

    def _take_seal(self, line: dict[str, Any]) -> None:
        self._close_seal()
        self._demand(self.unsealed == 0, "a seal after transfers that are not sealed")
        before = self._seal
        number, first, last = line["number"], line["first_number"], line["last_number"]
        self._demand(number == (before["number"] + 1 if before else 1), "a seal is missing")
        self._demand(first == (before["last_number"] + 1 if before else 1), "seals leave a gap")
        self._demand(first <= last and line["transfer_count"] >= 1, "an empty seal")
        previous = bytes.fromhex(line["previous_digest"])
        self._demand(
            previous == (bytes.fromhex(before["digest"]) if before else NO_DIGEST),
            f"seal {number} does not follow the one before it",
        )
        digest = seal_digest(
            number=number,
            first_number=first,
            last_number=last,
            transfer_count=line["transfer_count"],
            root=bytes.fromhex(line["root"]),
            accounts_root=bytes.fromhex(line["accounts_root"]),
            previous_digest=previous,
            sealed_at=_instant(line["sealed_at"]),
        )
        self._demand(digest.hex() == line["digest"], f"seal {number} does not have its digest")
        self._digests_seen = self._digests_seen or digest == self.wanted_head
        self._seal, self._place = line, -1

    def _transfer(self, line: dict[str, Any]) -> None:
        number, transfer = line["number"], UUID(line["transfer_id"])
        self._demand(number > self._number, f"transfer {transfer} is out of order or given twice")
        debit, credit = _id(line["debit_account_id"]), _id(line["credit_account_id"])
        own = [account for account in (debit, credit) if account is not None]
        self._demand(bool(own) and debit != credit, f"transfer {transfer} is of no account of the extract")
        self._demand(
            all(account in self._accounts for account in own), f"transfer {transfer} is of a stranger"
        )
        amount = line["amount_micros"]
        self._demand(type(amount) is int and amount > 0, f"transfer {transfer} has no amount")
        balances = {}
        for account, side in ((debit, 1), (credit, 2)):
            if account is not None:
                sums = self._accounts[account]
                sums[0] += 1
                sums[side] += amount
                balances[str(account)] = sums[2] - sums[1]
        self._demand(line["balances_micros"] == balances, f"the balance after transfer {transfer} is wrong")
        if line["proof"] is None:
            self._close_seal()
            last = self._seal["last_number"] if self._seal else 0
            self._demand(number > last, f"transfer {transfer} should be in a seal and has no proof")
            self.unsealed += 1
        else:
            self._demand(self.unsealed == 0, f"transfer {transfer} has a proof and follows some without")
            self._prove(line, number, transfer, debit, credit)
            self._touched.update(own)
        self._number = number
        self.transfers += 1

    def _prove(
        self, line: dict[str, Any], number: int, transfer: UUID, debit: UUID | None, credit: UUID | None
    ) -> None:
        seal = self._seal
        if seal is None or not seal["first_number"] <= number <= seal["last_number"]:
            raise BrokenExtract(f"line {self._line}: transfer {transfer} is not of the seal it stands under")
        leaf = transfer_leaf(
            number=number,
            transfer_id=transfer,
            debit=bytes.fromhex(line["debit_party"])
            if debit is None
            else debit_party(transfer, debit, _id(line["hold_id"])),
            credit=bytes.fromhex(line["credit_party"]) if credit is None else credit_party(transfer, credit),
            amount_micros=line["amount_micros"],
            occurred_at=_instant(line["occurred_at"]),
            created_at=_instant(line["created_at"]),
            reference_id=_id(line["reference_id"]),
            code=line["code"],
        )
        place = line["place"]
        self._demand(place > self._place, f"transfer {transfer} stands at the wrong place")
        root = root_by(leaf, place, seal["transfer_count"], map(bytes.fromhex, line["proof"]))
        self._demand(
            root is not None and root.hex() == seal["root"],
            f"transfer {transfer} is not in seal {seal['number']} as it is written here",
        )
        self._place = place

    def _balance(self, line: dict[str, Any]) -> None:
        account, seal = UUID(line["account_id"]), self._seal
        if seal is None or account not in self._touched:
            raise BrokenExtract(
                f"line {self._line}: seal {seal and seal['number']} has transfers of account {account} "
                "that are not here"
            )
        sums = self._accounts[account]
        self._demand(
            sums == [line["entries"], line["debits_micros"], line["credits_micros"]],
            f"account {account} does not add up to what seal {seal['number']} says: a transfer was dropped or added",
        )
        leaf = account_leaf(account, *sums)
        root = root_by(leaf, line["place"], line["account_count"], map(bytes.fromhex, line["proof"]))
        self._demand(
            root is not None and root.hex() == seal["accounts_root"],
            f"seal {seal['number']} does not commit to these sums of account {account}",
        )
        self._touched.discard(account)

    def _close_seal(self) -> None:
        """What a seal has of an account must be summed up by it."""
        self._demand(not self._touched, "a seal's sums are missing for an account that it has transfers of")

    def _end(self, line: dict[str, Any]) -> None:
        self._close_seal()
        sums = {str(account): sums for account, sums in self._accounts.items()}
        self._demand(line["accounts"] == sums, "an account does not add up to its end")
        self._demand(
            line["transfers"] == self.transfers, "the number of transfers is not that of the end line"
        )
        self._demand(line["sha256"] == self._hash.hexdigest(), "a byte of the file was changed")
        head = (self._seal["number"], self._seal["digest"]) if self._seal else (0, NO_DIGEST.hex())
        self._demand(self._said_head == head, "the seals do not reach the head")
        self._demand(self._digests_seen, "the head you gave is not in this chain: not the same books")
        self._demand(
            set(line) == {"type", "accounts", "transfers", "sha256"}, "the end line says more than it should"
        )
        self._ended = True

    def _demand(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise BrokenExtract(f"line {self._line}: {otherwise}")


def verify(lines: Iterable[bytes], *, head: bytes | None = None) -> Verifier:
    """Raises BrokenExtract; answers what it counted."""
    verifier = Verifier(head)
    for raw in lines:
        verifier.take(raw)
    verifier.finish()
    return verifier


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify an extract of the books, offline.")
    parser.add_argument("extract")
    parser.add_argument("--head", type=bytes.fromhex, help="a seal's digest that you trust, in hex")
    options = parser.parse_args(arguments)
    try:
        with open(options.extract, "rb") as file:  # noqa: PTH123  (nothing but the plainest Python)
            counted = verify(file, head=options.head)
    except BrokenExtract as broken:
        sys.stderr.write(f"BROKEN: {broken}\n")
        return 1
    sys.stdout.write(f"OK: {counted.transfers} transfers, {counted.unsealed} of them not sealed yet\n")
    return 0


def _id(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("an instant without a zone")
    return at


if __name__ == "__main__":
    sys.exit(main())
