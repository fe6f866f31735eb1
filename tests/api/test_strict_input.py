from __future__ import annotations

import pytest

from marketplace.api.parsing import parse_json
from tests.cast import Party

pytestmark = pytest.mark.urls("tests.api.probe")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"amount_micros": 0}', "amount_micros"),
        ('{"amount_micros": -1}', "amount_micros"),
        ('{"amount_micros": 1.0}', "amount_micros"),
        ('{"amount_micros": 1e3}', "amount_micros"),
        ('{"amount_micros": "1"}', "amount_micros"),
        ('{"amount_micros": true}', "amount_micros"),
        ('{"amount_micros": null}', "amount_micros"),
        ('{"amount_micros": []}', "amount_micros"),
        ('{"amount_micros": 9223372036854775808}', "amount_micros"),
        ('{"amount_micros": 1' + "0" * 400 + "}", "amount_micros"),
        ('{"quantity_lots": 1000000001}', "quantity_lots"),
        ('{"share_ppm": 1000001}', "share_ppm"),
        ('{"count": false}', "count"),
        ('{"id": "00000000000000000000000000000000"}', "id"),
        ('{"id": 1}', "id"),
        ('{"id": "é0000000-0000-0000-0000-00000000000"}', "id"),
        ('{"note": 1}', "note"),
        ('{"note": ""}', "note"),
        ('{"note": "a\\u0000b"}', "note"),
        ('{"note": "\\ud800"}', "note"),
        ('{"note": "12345678901"}', "note"),
        ('{"flag": "yes"}', "flag"),
        ('{"flag": 1}', "flag"),
        ('{"word": "three"}', "word"),
        ('{"word": 1}', "word"),
        ('{"at": 5}', "at"),
        ('{"at": "2026-02-30T00:00:00Z"}', "at"),
        ('{"unheard_of": 1}', "unheard_of"),
        ('{"bad\\u0000name": 1}', "bad\\x00name"),
        ('{"bad\\ud800name": 1}', "bad\\ud800name"),
        ('{"steps": [{"quantity_lots": 1}, {"quantity_lots": 0}]}', "steps.1.quantity_lots"),
        ('{"steps": [{"quantity_lots": 1, "x": 2}]}', "steps.0.x"),
        ('{"steps": [{"note": "\\ud800"}]}', "steps.0.note"),
        ('{"steps": {}}', "steps"),
        ('"text"', ""),
        ("null", ""),
        ('{"amount_micros": NaN}', "amount_micros"),
        ('{"amount_micros": Infinity}', "amount_micros"),
        ('{"steps": [{"lots": -Infinity}]}', "steps.0.lots"),
    ],
)
def test_bad_values_are_422_and_name_the_field(acme: Party, body: str, field: str) -> None:
    answer = acme.api.post("/api/v1/parse", body.encode(), content_type="application/json")
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert answer["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"amount_micros": 1, "amount_micros": 2}',
        b'{"note": "\xff"}',
        b'{"amount_micros": ' + b"9" * 5_000 + b"}",
        b'{"steps": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"steps": ' + b"[" * 40 + b"]" * 40 + b"}",
    ],
    ids=["open", "twice", "utf8", "digits", "deep", "nested"],
)
def test_what_is_not_strict_json_is_400(acme: Party, body: bytes) -> None:
    answer = acme.api.post("/api/v1/parse", body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "parse_error")


def test_other_media_types_and_methods_and_addresses_are_problems_too(acme: Party) -> None:
    answer = acme.api.post("/api/v1/parse", b"a=1", content_type="application/x-www-form-urlencoded")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    answer = acme.api.get("/api/v1/parse")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert acme.api.options("/api/v1/parse").status_code == 405
    answer = acme.api.get("/api/v1/nothing/here")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer["Content-Type"] == "application/problem+json"


def test_a_body_beyond_the_limit_is_413(acme: Party, settings: object) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1_000  # type: ignore[attr-defined]
    body = b'{"note": "' + b"x" * 1_000 + b'"}'
    answer = acme.api.post("/api/v1/parse", body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("query", ["page_size=0", "page_size=201", "page_size=x", "page_size=٣", "cursor=zz"])
def test_bad_pages_name_the_parameter(acme: Party, query: str) -> None:
    answer = acme.api.get(f"/api/v1/audit?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, query.partition("=")[0])


def test_lists_go_on_where_the_page_before_ended(acme: Party) -> None:
    for _ in range(4):
        acme.api.post("/api/v1/api-keys", {"scopes": ["read"]}, format="json")
    whole = [one["id"] for one in acme.api.get("/api/v1/audit").json()["items"]]
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = acme.api.get(f"/api/v1/audit?page_size=2&cursor={cursor}").json()
        found += [one["id"] for one in page["items"]]
        cursor = page["next"]
    assert found == whole
    assert len(whole) == len(set(whole)) > 4


def test_good_values_come_through_unchanged(acme: Party) -> None:
    body = {
        "amount_micros": 10**15,
        "quantity_lots": 1,
        "share_ppm": 0,
        "id": "01999999-9999-7999-8999-999999999999",
        "note": " ok 🙂 ",
        "flag": False,
        "word": "two",
        "at": "2026-03-10T14:00:00+02:00",
    }
    answer = acme.api.post("/api/v1/parse", body, format="json")
    assert answer.json()["at"] == "2026-03-10 12:00:00+00:00"
    assert answer.json()["note"] == "ok 🙂"
    assert parse_json(b'{"a": 1}') == {"a": 1}
