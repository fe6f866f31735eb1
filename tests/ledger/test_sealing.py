"""Seals: what is closed stays closed, and what was changed behind the books' back is named."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from marketplace.ids import uuid7
from marketplace.ledger import extract_verifier as tree
from marketplace.ledger.checking import Difference, check_ledger, totals
from marketplace.ledger.models import Seal, SealedBalance, Transfer
from marketplace.ledger.sealing import Sealed, seal_transfers
from tests.conftest import TestDatabase
from tests.ledger.books import Books, make_books
from tests.ledger.conftest import Tamper

_CHECKOUT = Path(__file__).resolve().parents[2]


def test_seals_chain_and_cover_every_transfer_once(sealed_books: Books, now: datetime) -> None:
    seals = list(Seal.objects.order_by("number"))
    assert [seal.number for seal in seals] == [1, 2, 3]
    assert sum(seal.transfer_count for seal in seals) == Transfer.objects.count() == 7
    for before, after in pairwise(seals):
        assert after.first_number == before.last_number + 1
        assert bytes(after.previous_digest) == bytes(before.digest)
    latest = SealedBalance.objects.filter(account_id=sealed_books.prepaid).latest("seal_id")
    assert (latest.credits_micros, latest.debits_micros, latest.entries) == (1_000, 51, 6)
    assert check_ledger() == [] == check_ledger(incremental=True)
    assert seal_transfers(now=now) == Sealed(seals=0, transfers=0, complete=True)
    assert totals()["unsealed_transfers"] == 0


def test_both_implementations_of_the_canonical_bytes_agree(sealed_books: Books) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, ledger_transfer_leaf(t) FROM ledger_transfer AS t")
        leaves = {id_: bytes(leaf) for id_, leaf in cursor.fetchall()}
    assert len(leaves) == 7
    for transfer in Transfer.objects.all():
        assert leaves[transfer.id] == tree.transfer_leaf(
            number=transfer.number,
            transfer_id=transfer.id,
            debit=tree.debit_party(transfer.id, transfer.debit_account_id, transfer.hold_id),
            credit=tree.credit_party(transfer.id, transfer.credit_account_id),
            amount_micros=transfer.amount_micros,
            occurred_at=transfer.occurred_at,
            created_at=transfer.created_at,
            reference_id=transfer.reference_id,
            code=transfer.code,
        )


@given(count=st.integers(min_value=1, max_value=70))
def test_every_leaf_is_proven_by_its_path_and_by_no_other(count: int) -> None:
    leaves = [bytes([number]) * 32 for number in range(count)]
    levels = tree.tree_levels(leaves)
    for place, leaf in enumerate(leaves):
        proof = tree.proof_of(levels, place)
        assert tree.root_by(leaf, place, count, proof) == levels[-1][0]
        assert tree.root_by(b"x" * 32, place, count, proof) != levels[-1][0]
        assert tree.root_by(leaf, place, count, [*proof, leaf]) is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33])
def test_the_database_makes_the_same_tree(db: None, count: int) -> None:
    leaves = [bytes([number]) * 32 for number in range(count)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_tree_root(%s::bytea[])", [leaves])
        assert bytes(cursor.fetchone()[0]) == tree.root_of(leaves)


def test_a_transfer_that_commits_late_is_waited_for_and_not_passed_over(
    committed_db: TestDatabase, now: datetime
) -> None:
    """Its number is lower than that of transfers that are committed already."""
    books = make_books(now)
    late = uuid7()
    with psycopg.connect(committed_db.database_url) as slow:
        slow.execute(
            "SELECT ledger_post_transfers(ARRAY[%s::uuid], ARRAY[%s::uuid], ARRAY[%s::uuid], ARRAY[7::bigint],"
            " ARRAY['slow'], ARRAY[NULL::uuid], ARRAY[NULL::uuid], %s)",
            [late, books.processor, books.prepaid, now],
        )
        books.post(books.fees, books.payable, 7)
        assert seal_transfers(now=now, wait_s=0.2) == Sealed(seals=0, transfers=0, complete=False)
        done: list[Sealed] = []

        def seal() -> None:
            done.append(seal_transfers(now=now))
            connection.close()

        sealer = threading.Thread(target=seal)
        sealer.start()
        sealer.join(0.3)
        assert sealer.is_alive()
        slow.commit()
        sealer.join(20)
    assert done == [Sealed(seals=1, transfers=2, complete=True)]
    first = Transfer.objects.order_by("number")[0]
    assert first.id == late
    assert check_ledger() == []


def test_sealing_from_many_sides_makes_one_chain(committed_db: TestDatabase, now: datetime) -> None:
    books = make_books(now)
    books.fund(1_000)

    def work() -> None:
        for _ in range(10):
            books.post(books.prepaid, books.payable, 1)
            seal_transfers(now=now, most=4)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seal_transfers(now=now)
    assert check_ledger() == []
    assert sum(Seal.objects.values_list("transfer_count", flat=True)) == 41 == Transfer.objects.count()


def test_nobody_but_the_function_writes_seals(sealed_books: Books, committed_db: TestDatabase) -> None:
    with psycopg.connect(committed_db.database_url, autocommit=True) as app:
        for table in ("ledger_seal", "ledger_sealedbalance"):
            for statement in (f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM {table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    app.execute(statement.encode())
    with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
        for table in ("ledger_seal", "ledger_sealedbalance"):
            with pytest.raises(psycopg.errors.RestrictViolation):
                owner.execute(f"DELETE FROM {table}".encode())


EDITS = {
    "amount_micros": "amount_micros + 1",
    "code": "'other'",
    "occurred_at": "occurred_at + interval '1 microsecond'",
    "created_at": "created_at - interval '1 day'",
    "reference_id": "uuidv7()",
    "hold_id": "NULL",
    "debit_account_id": "(SELECT id FROM ledger_ledgeraccount WHERE kind = 'processor')",
    "number": "(SELECT max(number) + 1 FROM ledger_transfer)",
}


@pytest.mark.parametrize("column", EDITS)
def test_an_edited_transfer_is_named_with_its_seal(sealed_books: Books, tamper: Tamper, column: str) -> None:
    edited = Transfer.objects.filter(hold_id__isnull=False).get()
    tamper(f"UPDATE ledger_transfer SET {column} = {EDITS[column]} WHERE id = %s", edited.id)
    first = check_ledger()[0]
    what = "transfer_missing" if column == "number" else "transfer_changed"
    assert (first.what, first.object_id, first.seal) == (what, str(edited.id), 1)


def test_a_deleted_transfer_is_named_though_its_accounts_were_made_to_agree(
    sealed_books: Books, tamper: Tamper, committed_db: TestDatabase
) -> None:
    gone = Transfer.objects.get(amount_micros=5)
    tamper("DELETE FROM ledger_transfer WHERE id = %s", gone.id)
    for side, account in (("debits", gone.debit_account_id), ("credits", gone.credit_account_id)):
        tamper(
            f"UPDATE ledger_ledgeraccount SET {side}_posted_micros = {side}_posted_micros - 5 WHERE id = %s",
            account,
        )
    differences = check_ledger()
    assert Difference("transfer_missing", str(gone.id), 0, 0, 2) in differences
    assert {one.what for one in differences if one.seal is None} == set()
    done = subprocess.run(
        [sys.executable, "manage.py", "checkledger"],
        cwd=_CHECKOUT,
        env=committed_db.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"checkledger: transfer_missing of {gone.id} in seal 2" in done.stderr
    assert json.loads(done.stdout)["seals"] == 3


def test_a_transfer_slipped_into_a_sealed_range_is_named(sealed_books: Books, tamper: Tamper) -> None:
    slipped = uuid7()
    replaced = Transfer.objects.get(amount_micros=5)
    tamper("DELETE FROM ledger_transfer WHERE id = %s", replaced.id)
    tamper(
        "INSERT INTO ledger_transfer (id, number, debit_account_id, credit_account_id, amount_micros, code, "
        "occurred_at) VALUES (%s, %s, %s, %s, 5, 'usage', %s)",
        slipped,
        replaced.number,
        replaced.debit_account_id,
        replaced.credit_account_id,
        replaced.occurred_at,
    )
    found = {(one.what, one.seal) for one in check_ledger() if one.object_id == str(slipped)}
    assert found == {("transfer_added", 2)}


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        ("UPDATE ledger_seal SET root = accounts_root WHERE number = 2", "seal_digest"),
        (
            "UPDATE ledger_seal SET sealed_at = sealed_at + interval '1 second' WHERE number = 2",
            "seal_digest",
        ),
        ("DELETE FROM ledger_seal WHERE number = 2", "seal_chain"),
        ("UPDATE ledger_seal SET members = substr(members, 49) WHERE number = 2", "seal_root"),
        ("UPDATE ledger_sealedbalance SET credits_micros = 7 WHERE seal_id = 2", "sealed_balance"),
        ("DELETE FROM ledger_sealedbalance WHERE seal_id = 2", "sealed_balance_missing"),
    ],
)
def test_a_tampered_seal_is_found(sealed_books: Books, tamper: Tamper, edit: str, what: str) -> None:
    tamper(edit)
    assert what in {one.what for one in check_ledger()}


def test_a_seal_made_again_over_changed_transfers_breaks_the_chain(
    sealed_books: Books, tamper: Tamper, now: datetime
) -> None:
    """Whoever seals anew from the change on must change every digest after it: a head kept elsewhere shows it."""
    heads = {bytes(digest) for digest in Seal.objects.values_list("digest", flat=True)}
    tamper("UPDATE ledger_transfer SET code = 'x' WHERE number = (SELECT min(number) FROM ledger_transfer)")
    tamper("DELETE FROM ledger_sealedbalance")
    tamper("DELETE FROM ledger_seal")
    seal_transfers(now=now, most=3)
    assert check_ledger() == []
    assert heads.isdisjoint(bytes(digest) for digest in Seal.objects.values_list("digest", flat=True))


def test_the_incremental_check_sees_what_came_after_the_last_seal(
    sealed_books: Books, tamper: Tamper
) -> None:
    old = Transfer.objects.earliest("number")
    tamper("UPDATE ledger_transfer SET code = 'x' WHERE id = %s", old.id)
    assert check_ledger(incremental=True) == []
    sealed_books.post(sealed_books.prepaid, sealed_books.payable, 3)
    assert check_ledger(incremental=True) == []
    tamper("UPDATE ledger_transfer SET amount_micros = 4 WHERE amount_micros = 3")
    found = {(one.what, UUID(one.object_id)) for one in check_ledger(incremental=True)}
    assert found == {("debits_posted", sealed_books.prepaid), ("credits_posted", sealed_books.payable)}
    newest = Transfer.objects.get(amount_micros=6)
    tamper("UPDATE ledger_transfer SET amount_micros = 7 WHERE id = %s", newest.id)
    assert check_ledger(incremental=True)[0].object_id == str(newest.id)


def test_the_command_seals(
    committed_db: TestDatabase, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    make_books(now).fund(10)
    call_command("sealledger")
    assert json.loads(capsys.readouterr().out) == {"seals": 1, "transfers": 1, "complete": True}
