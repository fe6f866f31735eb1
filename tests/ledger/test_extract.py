"""An organization's extract: complete, verifiable offline, and broken by any change."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from marketplace.ledger import extract_verifier
from marketplace.ledger.extract import VERIFIER, extract_lines, head
from marketplace.ledger.extract_verifier import BrokenExtract, canonical, verify
from marketplace.ledger.models import LedgerAccount, Transfer
from marketplace.ledger.sealing import seal_transfers
from tests.ledger.books import Books


def organization_of(account: UUID) -> UUID:
    return LedgerAccount.objects.get(pk=account).organization_id


def extract_of(account: UUID, now: datetime) -> list[bytes]:
    return list(extract_lines(organization_id=organization_of(account), now=now))


def forged(lines: list[bytes], change: Callable[[list[dict[str, Any]]], None]) -> list[bytes]:
    """The extract after a change by somebody who can count and hash: sums, balances and the file's digest agree."""
    parsed = [json.loads(line) for line in lines]
    change(parsed)
    sums: dict[str, list[int]] = {
        line["account_id"]: [0, 0, 0] for line in parsed if line["type"] == "account"
    }
    transfers = [line for line in parsed if line["type"] == "transfer"]
    for line in transfers:
        line["balances_micros"] = {}
        for side, place in (("debit_account_id", 1), ("credit_account_id", 2)):
            if line[side]:
                own = sums[line[side]]
                own[0] += 1
                own[place] += line["amount_micros"]
                line["balances_micros"][line[side]] = own[2] - own[1]
    parsed[-1] |= {"accounts": sums, "transfers": len(transfers)}
    body = [canonical(line).encode() + b"\n" for line in parsed[:-1]]
    parsed[-1]["sha256"] = hashlib.sha256(b"".join(body)).hexdigest()
    return [*body, canonical(parsed[-1]).encode() + b"\n"]


def test_every_organization_verifies_its_own_side(sealed_books: Books, now: datetime) -> None:
    sealed_books.post(sealed_books.prepaid, sealed_books.payable, 4)
    newest = head()
    assert newest is not None
    for account, transfers, unsealed in (
        (sealed_books.prepaid, 7, 1),
        (sealed_books.payable, 6, 1),
        (sealed_books.fees, 3, 0),
    ):
        counted = verify(extract_of(account, now), head=bytes(newest.digest))
        assert (counted.transfers, counted.unsealed) == (transfers, unsealed)
    last = json.loads(extract_of(sealed_books.prepaid, now)[-1])
    assert last["accounts"] == {str(sealed_books.prepaid): [7, 55, 1_000]}


def test_an_extract_says_nothing_of_the_other_side(sealed_books: Books, now: datetime) -> None:
    text = b"".join(extract_of(sealed_books.payable, now)).decode()
    hold = Transfer.objects.get(hold_id__isnull=False).hold_id
    assert hold is not None
    for foreign in (sealed_books.prepaid, sealed_books.fees, sealed_books.processor, hold):
        assert str(foreign) not in text
        assert foreign.hex not in text
    assert str(sealed_books.payable) in text


def test_a_change_of_any_byte_is_found(sealed_books: Books, now: datetime) -> None:
    raw = b"".join(extract_of(sealed_books.fees, now))
    verify(raw.splitlines(keepends=True))
    for place in range(len(raw)):
        broken = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises(BrokenExtract):
            verify(broken.splitlines(keepends=True))


def test_a_change_by_a_forger_who_adds_everything_up_again_is_found(
    sealed_books: Books, now: datetime
) -> None:
    lines = extract_of(sealed_books.prepaid, now)
    kept = bytes(head().digest)  # type: ignore[union-attr]
    assert forged(lines, lambda _: None) == lines
    sealed = [at for at, line in enumerate(lines) if json.loads(line)["type"] == "transfer"]
    for at in sealed:

        def drop(parsed: list[dict[str, Any]], at: int = at) -> None:
            del parsed[at]

        def double(parsed: list[dict[str, Any]], at: int = at) -> None:
            parsed.insert(at, dict(parsed[at]))

        def add(parsed: list[dict[str, Any]], at: int = at) -> None:
            parsed.insert(
                at, {**parsed[at], "number": parsed[at]["number"] - 1, "transfer_id": str(UUID(int=7))}
            )

        def edit(parsed: list[dict[str, Any]], at: int = at) -> None:
            parsed[at]["amount_micros"] += 1

        def recode(parsed: list[dict[str, Any]], at: int = at) -> None:
            parsed[at]["code"] = "gift"

        def unseal(parsed: list[dict[str, Any]], at: int = at) -> None:
            parsed[at]["proof"] = None

        for change in (drop, double, add, edit, recode, unseal):
            with pytest.raises(BrokenExtract):
                verify(forged(lines, change), head=kept)


def test_seals_cannot_be_left_out_nor_belong_to_other_books(sealed_books: Books, now: datetime) -> None:
    lines = extract_of(sealed_books.prepaid, now)
    for number in (1, 2, 3):

        def drop(parsed: list[dict[str, Any]], number: int = number) -> None:
            seals = [at for at, line in enumerate(parsed) if line["type"] == "seal"] + [len(parsed) - 1]
            del parsed[seals[number - 1] : seals[number]]

        with pytest.raises(BrokenExtract):
            verify(forged(lines, drop))
    with pytest.raises(BrokenExtract, match="not the same books"):
        verify(lines, head=bytes(32))


def test_a_head_kept_from_before_is_found_in_a_later_extract(sealed_books: Books, now: datetime) -> None:
    before = head()
    assert before is not None
    sealed_books.post(sealed_books.prepaid, sealed_books.payable, 4)
    seal_transfers(now=now)
    verify(extract_of(sealed_books.payable, now), head=bytes(before.digest))


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "[]\n", '{"type":"end"}\n', "null\n", "\xff\n"])
def test_what_is_no_extract_is_refused(text: str) -> None:
    with pytest.raises(BrokenExtract):
        verify(text.encode("latin-1").splitlines(keepends=True))


def test_the_program_stands_alone(sealed_books: Books, now: datetime, tmp_path: Path) -> None:
    """Run outside the house, without its packages, isolated from its path."""
    program, extract = tmp_path / "verify.py", tmp_path / "extract.ndjson"
    program.write_bytes(VERIFIER.read_bytes())
    lines = extract_of(sealed_books.prepaid, now)
    extract.write_bytes(b"".join(lines))

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", str(program), str(extract), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    digest = bytes(head().digest).hex()  # type: ignore[union-attr]
    assert run("--head", digest) == (0, "OK: 6 transfers, 0 of them not sealed yet\n")
    assert run("--head", "00" * 32)[0] == 1
    extract.write_bytes(b"".join(lines).replace(b'"fee"', b'"fef"').replace(b'"usage"', b'"usagf"'))
    code, said = run()
    assert code == 1
    assert said.startswith("BROKEN: line ")


def test_the_verifier_is_version_one() -> None:
    """Extracts of before must stay verifiable: another version is another program."""
    assert extract_verifier.VERSION == 1
