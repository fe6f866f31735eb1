"""Kappa from counts, and counts from texts that stand here: exact, and kept as versions that never change."""

from __future__ import annotations

import json
import time
from datetime import datetime
from hashlib import sha256
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from rest_framework.test import APIClient

from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from pricing.calibrating import ClassCounts, CorpusClass, corpus_digest, kappa_of, measure, spread_of
from pricing.corpora import MAX_FILE_BYTES, read_corpus
from pricing.models import CalibrationClass, TokenizerCalibration
from pricing.selectors import buckets_of, calibrations_in_force
from pricing.services import KNOWN_CALIBRATIONS, publish_grade, publish_known_calibrations, record_calibration
from pricing.tokenizers import REFERENCE_DIGEST
from pricing.units import Bucket, decimal_string
from tests.cast import Party
from tests.conftest import TestDatabase
from tests.pricing.test_api import BODY
from tests.pricing.test_services import TERMS

ENGLISH = "Every token is metered at two places.\nHello world\n"
HINDI = "हर टोकन दो जगह मापा जाता है।\n"
CODE = "def rate(lots):\n    return 1234567 * lots\n"


def counts(name: str, native: int, o200k: int, *, weight: int = 1) -> ClassCounts:
    return ClassCounts(name, weight, texts=1, utf8_bytes=native, native_tokens=native, o200k_tokens=o200k)


def terms(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": "words",
        "tokenizer_digest": "0" * 64,
        "made_by": "test 1",
        "corpus": "small",
        "corpus_digest": "1" * 64,
        "classes": [counts("eng", 100, 90), counts("hin", 300, 100)],
    } | changes


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "eng").write_text(ENGLISH)
    (folder / "hin.txt").write_text(HINDI)
    (folder / "code.py").write_text(CODE)
    (folder / ".hidden").write_text("not a class")
    return folder


def calibrate(*arguments: object) -> dict[str, Any]:
    out = StringIO()
    call_command("calibrate", *map(str, arguments), stdout=out)
    shown: dict[str, Any] = json.loads(out.getvalue())
    return shown


# Pure --------------------------------------------------------------------------------------------------------------


def test_kappa_is_the_quotient_of_the_mix_rounded_once() -> None:
    classes = [counts("eng", 3, 2), counts("hin", 7, 2)]
    assert [one.kappa_ppm for one in classes] == [666_667, 285_714]
    assert kappa_of(classes) == 400_000
    # 5 x 2 + 2 over 5 x 3 + 7: not the mean of the classes' kappas.
    assert kappa_of([counts("eng", 3, 2, weight=5), classes[1]]) == 545_455
    # Exactly half a millionth goes to the even neighbour.
    assert kappa_of([counts("a", 2_000_000, 1)]) == 0
    assert kappa_of([counts("a", 2_000_000, 3)]) == 2


def test_spread_is_by_nearest_rank() -> None:
    classes = [counts(f"c{number:02}", 100, number) for number in range(1, 36)]
    spread = spread_of(list(reversed(classes)))
    ranks = (spread.least_ppm, spread.p10_ppm, spread.median_ppm, spread.p90_ppm, spread.most_ppm)
    assert ranks == (10_000, 40_000, 180_000, 320_000, 350_000)
    alone = spread_of([counts("one", 4, 3)])
    assert {alone.least_ppm, alone.p10_ppm, alone.median_ppm, alone.p90_ppm, alone.most_ppm} == {750_000}


def test_each_text_is_counted_for_itself() -> None:
    one = CorpusClass("eng", ("a b", "ü"), "d")
    [counted] = measure([one], native=len, reference=lambda text: len(text.split()), weights={"eng": 7})
    assert counted == ClassCounts("eng", 7, texts=2, utf8_bytes=5, native_tokens=4, o200k_tokens=3)


def test_another_text_or_another_mix_is_another_corpus() -> None:
    a, b = CorpusClass("a", ("x",), "1"), CorpusClass("b", ("y",), "2")
    digest = corpus_digest([a, b], {})
    assert digest == corpus_digest([b, a], {"a": 1}) == sha256(b"a 1 1\nb 1 2\n").hexdigest()
    others = [
        corpus_digest([a], {}),
        corpus_digest([a, b], {"a": 2}),
        corpus_digest([CorpusClass("a", ("x",), "3"), b], {}),
        corpus_digest([CorpusClass("c", ("x",), "1"), b], {}),
    ]
    assert len({digest, *others}) == 5


# A folder of texts -------------------------------------------------------------------------------------------------


def test_a_folder_is_read_line_by_line_where_it_is_prose(corpus: Path) -> None:
    classes = {one.name: one for one in read_corpus(corpus)}
    assert list(classes) == ["code", "eng", "hin"]
    assert classes["eng"].texts == ("Every token is metered at two places.", "Hello world")
    assert classes["code"].texts == (CODE,)
    assert classes["hin"].digest == sha256(HINDI.encode()).hexdigest()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("latin", b"gr\xfc\xdfe"),
        ("empty", b"\n \n"),
        ("two words", b"a"),
        ("eng.txt", b"twice"),
        ("x" * 33, b"a"),
    ],
)
def test_a_folder_that_is_no_corpus_is_refused(corpus: Path, file: str, content: bytes) -> None:
    (corpus / file).write_bytes(content)
    with pytest.raises(InvalidInput) as refused:
        read_corpus(corpus)
    assert refused.value.field == "corpus_folder"


def test_a_file_too_large_is_not_read(corpus: Path) -> None:
    with (corpus / "huge.txt").open("wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(InvalidInput, match=r"huge\.txt is larger than"):
        read_corpus(corpus)


def test_there_must_be_a_folder_with_files(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InvalidInput):
            read_corpus(folder)


# The command -------------------------------------------------------------------------------------------------------


def test_the_command_measures_exactly_and_keeps_a_version(db: None, corpus: Path) -> None:
    """One token a byte: the native counts are the lengths of the texts, the o200k counts are looked up by hand."""
    shown = calibrate("bytes", corpus)
    by_name = {row["name"]: row for row in shown["classes"]}
    # "Every token is metered at two places." is 9 tokens, "Hello world" 2.
    assert by_name["eng"] == {
        "name": "eng", "weight": 1, "texts": 2, "utf8_bytes": 48, "native_tokens": 48, "o200k_tokens": 11,
        "kappa_ppm": 229_167,
    }  # fmt: skip
    assert (by_name["hin"]["native_tokens"], by_name["hin"]["o200k_tokens"]) == (72, 11)
    code = by_name["code"]
    assert (code["texts"], code["native_tokens"]) == (1, len(CODE))
    native = 48 + 72 + len(CODE)
    assert shown["kappa_ppm"] == round(1_000_000 * (11 + 11 + code["o200k_tokens"]) / native)
    assert (shown["corpus"], shown["version"], shown["new"]) == ("small", 1, True)
    row = TokenizerCalibration.objects.get()
    assert str(row.pk) == shown["calibration_id"]
    assert (row.kappa_ppm, row.corpus_digest) == (shown["kappa_ppm"], shown["corpus_digest"])
    assert {field: getattr(row, field) for field in shown["spread"]} == shown["spread"]
    assert row.classes.count() == 3
    assert CalibrationClass.objects.get(name="eng").o200k_tokens == 11

    again = calibrate("bytes", corpus)
    assert (again["version"], again["new"], again["calibration_id"]) == (1, False, shown["calibration_id"])
    other_mix = calibrate("bytes", corpus, "--weight", "eng=10")
    assert (other_mix["version"], other_mix["new"]) == (2, True)
    mixed = 10 * 48 + 72 + len(CODE)
    assert other_mix["kappa_ppm"] == round(1_000_000 * (110 + 11 + code["o200k_tokens"]) / mixed)
    (corpus / "eng").write_text("Hello world\n")
    assert calibrate("bytes", corpus)["version"] == 3
    assert calibrate("cl100k_base", corpus, "--name", "GPT-4", "--corpus", "mine")["version"] == 1
    assert [str(one) for one in calibrations_in_force()] == ["GPT-4@1", "bytes@3"]


def test_the_reference_against_itself_is_one(db: None, corpus: Path) -> None:
    shown = calibrate("o200k_base", corpus, "--dry-run")
    assert (shown["kappa_ppm"], shown["tokenizer_digest"]) == (1_000_000, REFERENCE_DIGEST)
    assert set(shown["spread"].values()) == {1_000_000}
    assert "version" not in shown
    assert not TokenizerCalibration.objects.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "corpus_folder"),
        (("bytes",), "corpus_folder"),
        (("nothing", "{corpus}"), "tokenizer"),
        (("bytes", "{corpus}/eng"), "corpus_folder"),
        (("bytes", "{corpus}", "--weight", "eng"), "weight"),
        (("bytes", "{corpus}", "--weight", "eng=0"), "weight"),
        (("bytes", "{corpus}", "--weight", "fra=1"), "weight"),
        (("bytes", "{corpus}", "--weight", "eng=1", "--weight", "eng=2"), "weight"),
        (("bytes", "{corpus}", "--name", "n" * 65), "tokenizer"),
        (("bytes", "{corpus}", "--known"), "--known"),
    ],
)
def test_the_command_names_what_is_wrong(
    db: None, corpus: Path, arguments: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(CommandError, match=f"^{reason}: "):
        calibrate(*(argument.format(corpus=corpus) for argument in arguments))
    assert not TokenizerCalibration.objects.exists()


# What comes with the software --------------------------------------------------------------------------------------


def test_what_is_shipped_follows_from_its_counts(db: None, now: datetime) -> None:
    made = publish_known_calibrations(now=now)
    assert publish_known_calibrations(now=now) == made
    assert [one.version for one in made] == [1] * len(made)
    assert TokenizerCalibration.objects.count() == len(made) == 10
    for line, row in zip(KNOWN_CALIBRATIONS.read_text().splitlines(), made, strict=True):
        shipped = json.loads(line)
        assert (row.tokenizer, row.kappa_ppm) == (shipped["tokenizer"], shipped["kappa_ppm"])
        assert {field: getattr(row, field) for field in shipped["spread"]} == shipped["spread"]
        assert {one.name: one.kappa_ppm for one in row.classes.all()} == {
            one["name"]: one["kappa_ppm"] for one in shipped["classes"]
        }
    reference = made[0]
    assert (reference.tokenizer_digest, reference.kappa_ppm) == (REFERENCE_DIGEST, 1_000_000)
    # The same texts, by the same reference, with the same weights.
    assert (
        len(
            {
                tuple(row.classes.order_by("name").values_list("name", "weight", "o200k_tokens"))
                for row in made
            }
        )
        == 1
    )
    # 34 languages and code: a third each is English, code, everything else.
    weights = dict(reference.classes.values_list("name", "weight"))
    assert (weights.pop("eng_Latn"), weights.pop("python")) == (33, 33)
    assert list(weights.values()) == [1] * 33
    # The page that people read says the same.
    page = (Path(__file__).parents[2] / "docs/tokenizers.md").read_text()
    for row in made:
        figures = (row.kappa_ppm, row.least_ppm, row.p10_ppm, row.median_ppm, row.p90_ppm, row.most_ppm)
        cells = " | ".join(decimal_string(ppm, 6, minimum_decimals=6) for ppm in figures)
        assert f"| {row.tokenizer} | {cells} | {row.made_by} | `{row.tokenizer_digest[:16]}` |" in page
    assert made[0].corpus_digest in page
    out = StringIO()
    call_command("calibrate", "--known", stdout=out)
    assert len(out.getvalue().splitlines()) == 10


# Services ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokenizer": " "}, "tokenizer"),
        ({"corpus": "c" * 65}, "corpus"),
        ({"made_by": "a\0b"}, "made_by"),
        ({"tokenizer_digest": "sha256:00"}, "tokenizer_digest"),
        ({"corpus_digest": "G" * 64}, "corpus_digest"),
        ({"classes": []}, "classes"),
        ({"classes": [counts("eng", 0, 1)]}, "classes.eng.native_tokens"),
        ({"classes": [counts("eng", 1, 0)]}, "classes.eng.o200k_tokens"),
        ({"classes": [counts("eng", 1, 1, weight=0)]}, "classes.eng.weight"),
        ({"classes": [counts("eng", 1, 101)]}, "classes.eng.kappa_ppm"),
        ({"classes": [counts("eng", 10**7, 1)]}, "classes.eng.kappa_ppm"),
    ],
)
def test_a_bad_measurement_names_the_field(
    db: None, now: datetime, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        record_calibration(**terms(**changes), now=now)
    assert refused.value.field == field
    assert not TokenizerCalibration.objects.exists()


def test_a_calibration_never_changes(db: None, now: datetime) -> None:
    made, new = record_calibration(**terms(), now=now)
    assert new
    for statement in (
        "UPDATE pricing_tokenizercalibration SET kappa_ppm = least_ppm",
        "UPDATE pricing_calibrationclass SET o200k_tokens = 1",
        "DELETE FROM pricing_calibrationclass",
        "DELETE FROM pricing_tokenizercalibration",
    ):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
    made.refresh_from_db()
    assert made.kappa_ppm == 475_000


# Grades ------------------------------------------------------------------------------------------------------------


def test_a_grade_takes_kappa_from_a_calibration_of_its_tokenizer(db: None, now: datetime) -> None:
    calibration, _ = record_calibration(**terms(), now=now)
    own = TERMS | {
        "tokenizer_digest": "sha256:" + "0" * 64,
        "weights_ppm": TERMS["weights_ppm"] | {Bucket.IMAGE_INPUT: 2_000_000},
        "kappa_ppm": {Bucket.IMAGE_INPUT: 1_500_000},
    }
    grade = publish_grade(**own, calibration_id=calibration.pk, now=now)
    assert grade.calibration == calibration
    assert {bucket: row.kappa_ppm for bucket, row in buckets_of(grade.id).items()} == {
        Bucket.UNCACHED_INPUT: 475_000,
        Bucket.CACHE_READ: 475_000,
        Bucket.OUTPUT: 475_000,
        Bucket.IMAGE_INPUT: 1_500_000,
    }
    assert buckets_of(grade.id)[Bucket.OUTPUT].standard_ppm == 1_900_000
    # A later measurement changes nothing that was published.
    record_calibration(**terms(corpus_digest="2" * 64, classes=[counts("eng", 100, 50)]), now=now)
    grade.refresh_from_db()
    assert buckets_of(grade.id)[Bucket.OUTPUT].kappa_ppm == 475_000


def test_a_grade_refuses_a_calibration_that_is_not_its_own(db: None, now: datetime) -> None:
    calibration, _ = record_calibration(**terms(), now=now)
    digest = "0" * 64
    for changes, error, field in (
        ({"tokenizer_digest": "1" * 64, "kappa_ppm": {}}, InvalidInput, "tokenizer_digest"),
        ({"tokenizer_digest": digest}, InvalidInput, "kappa_ppm.uncached_input"),
        (
            {"tokenizer_digest": digest, "kappa_ppm": {}, "calibration_id": uuid7()},
            NotFound,
            "calibration_id",
        ),
    ):
        with pytest.raises(error) as refused:
            publish_grade(**TERMS | {"calibration_id": calibration.pk} | changes, now=now)
        assert refused.value.field == field


def test_two_measurements_of_one_moment_do_not_share_a_version(
    committed_db: TestDatabase, now: datetime
) -> None:
    refused: list[str | None] = []

    def record_another() -> None:
        try:
            record_calibration(**terms(corpus_digest="2" * 64), now=now)
        except Conflict as error:
            refused.append(error.field)
        finally:
            connection.close()

    other = Thread(target=record_another)
    with transaction.atomic():
        record_calibration(**terms(), now=now)
        other.start()
        give_up_at = time.monotonic() + 30
        while not _somebody_waits() and time.monotonic() < give_up_at:
            time.sleep(0.02)
    other.join(30)
    assert refused == ["tokenizer"]
    assert TokenizerCalibration.objects.get().corpus_digest == "1" * 64
    made, _ = record_calibration(**terms(corpus_digest="2" * 64), now=now)
    assert made.version == 2


def _somebody_waits() -> bool:
    with connection.cursor() as cursor:
        # For this connection: others on the same server have waits of their own.
        cursor.execute(
            """SELECT EXISTS (SELECT FROM pg_locks
                               WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"""
        )
        return bool(cursor.fetchone()[0])


# REST --------------------------------------------------------------------------------------------------------------


def test_everyone_reads_the_table_and_the_operator_names_a_row_of_it(operator: Party, now: datetime) -> None:
    calibration, _ = record_calibration(**terms(), now=now)
    listed = APIClient().get("/api/v1/tokenizers")
    assert listed.status_code == 200, listed.content
    [item] = listed.json()["items"]
    assert item["id"] == str(calibration.pk)
    assert (item["tokenizer"], item["version"], item["kappa_ppm"]) == ("words", 1, 475_000)
    assert item["spread"] == {
        "least_ppm": 333_333, "p10_ppm": 333_333, "median_ppm": 333_333, "p90_ppm": 900_000, "most_ppm": 900_000,
    }  # fmt: skip
    assert item["classes"][0] == {
        "name": "eng", "weight": 1, "texts": 1, "utf8_bytes": 100, "native_tokens": 100, "o200k_tokens": 90,
        "kappa_ppm": 900_000,
    }  # fmt: skip
    body = {key: value for key, value in BODY.items() if key != "kappa_ppm"} | {
        "tokenizer_digest": "sha256:" + "0" * 64,
        "calibration_id": item["id"],
    }
    made = operator.api.post("/api/v1/grades", body, format="json")
    assert made.status_code == 201, made.content
    assert {row["kappa_ppm"] for row in made.json()["buckets"]} == {475_000}
    assert made.json()["calibration"] == {
        "id": item["id"], "tokenizer": "words", "version": 1, "corpus": "small", "kappa_ppm": 475_000,
        "spread": item["spread"],
    }  # fmt: skip
    refused = operator.api.post("/api/v1/grades", body | {"tokenizer_digest": "other"}, format="json")
    assert (refused.status_code, refused.json()["field"]) == (422, "tokenizer_digest")
    for bad in ("", 5, "x"):
        refused = operator.api.post("/api/v1/grades", body | {"calibration_id": bad}, format="json")
        assert (refused.status_code, refused.json()["field"]) == (422, "calibration_id")
    assert APIClient().post("/api/v1/tokenizers", {}, format="json").status_code == 405
