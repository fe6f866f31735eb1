"""Grades over HTTP: everyone reads, the operator publishes."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from marketplace.accounts.models import AuditEntry
from marketplace.ids import uuid7
from pricing.models import Grade
from tests.cast import Party

URL = "/api/v1/grades"
BODY: dict[str, Any] = {
    "slug": "code-eu",
    "title": "Code",
    "model": "code",
    "precision_floor": "fp8",
    "context_tokens": 32_768,
    "region": "eu",
    "service_class": "standard",
    "currency": "USD",
    "tokenizer_digest": "sha256:00",
    "weights_ppm": {"uncached_input": 1_000_000, "output": 4_000_000},
    "kappa_ppm": {"uncached_input": 900_000, "output": 900_000},
    "max_request_s": 900,
    "max_output_tokens": 8_192,
    "template_overhead_tokens": 64,
    "spot_minimum_take_ppm": 500_000,
    "reference_rate_micros_per_mtok": 1_500_000,
}


def test_the_operator_publishes_and_everyone_reads(operator: Party) -> None:
    made = operator.api.post(URL, BODY, format="json")
    assert made.status_code == 201, made.content
    anyone = APIClient()
    listed = anyone.get(URL)
    assert listed.status_code == 200
    assert listed.json() == {"items": [made.json()], "next": None}
    assert anyone.get(f"{URL}/{made.json()['id']}").json() == made.json()
    shown = made.json()
    assert (shown["slug"], shown["version"], shown["valid_until"]) == ("code-eu", 1, None)
    assert shown["reference_rate_per_mtok"] == "1.5"
    assert shown["buckets"][1] == {
        "bucket": "output",
        "weight_ppm": 4_000_000,
        "kappa_ppm": 900_000,
        "standard_ppm": 3_600_000,
        "reference_price_per_mtok": "5.4",
    }
    entry = AuditEntry.objects.get(action="grade.published")
    assert (entry.organization_id, entry.actor_id) == (operator.id, operator.api_key_id)


def test_a_next_version_ends_the_first(operator: Party) -> None:
    first = operator.api.post(URL, BODY, format="json").json()
    second = operator.api.post(URL, BODY | {"max_request_s": 600}, format="json").json()
    assert second["version"] == 2
    assert [item["id"] for item in APIClient().get(URL).json()["items"]] == [second["id"]]
    assert APIClient().get(f"{URL}/{first['id']}").json()["valid_until"] == second["valid_from"]


def test_nobody_else_publishes(operator: Party, acme: Party, hyperion: Party, mallory: Party) -> None:
    for party in (acme, hyperion, mallory):
        assert party.api.post(URL, BODY, format="json").status_code == 403
    assert APIClient().post(URL, BODY, format="json").status_code == 401
    assert not Grade.objects.exists()


def test_reading_ignores_a_bad_key(grade: Grade) -> None:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Bearer ty_nonsense")
    assert client.get(URL).status_code == 200


def test_what_does_not_exist_is_not_found(db: None) -> None:
    assert APIClient().get(f"{URL}/{uuid7()}").status_code == 404
    assert APIClient().put(URL).status_code in (401, 405)


def test_pages_are_bounded(operator: Party) -> None:
    for index in range(3):
        body = BODY | {"slug": f"g{index}", "model": f"m{index}"}
        assert operator.api.post(URL, body, format="json").status_code == 201
    first = APIClient().get(URL, {"page_size": 2}).json()
    rest = APIClient().get(URL, {"page_size": 2, "cursor": first["next"]}).json()
    assert [item["slug"] for item in first["items"] + rest["items"]] == ["g2", "g1", "g0"]
    assert APIClient().get(URL, {"page_size": 0}).status_code == 422


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"slug": "no spaces"}, "slug"),
        ({"title": "t" * 121}, "title"),
        ({"title": 5}, "title"),
        ({"currency": "XXX"}, "currency"),
        ({"context_tokens": "32768"}, "context_tokens"),
        ({"context_tokens": 1.0}, "context_tokens"),
        ({"max_output_tokens": 40_000}, "max_output_tokens"),
        ({"spot_minimum_take_ppm": -1}, "spot_minimum_take_ppm"),
        ({"reference_rate_micros_per_mtok": 2**64}, "reference_rate_micros_per_mtok"),
        ({"weights_ppm": {"output": 1}}, "weights_ppm"),
        ({"weights_ppm": BODY["weights_ppm"] | {"thought": 1}}, "weights_ppm.thought"),
        ({"weights_ppm": BODY["weights_ppm"] | {"output": True}}, "weights_ppm.output"),
        ({"kappa_ppm": {"output": 0}}, "kappa_ppm.output"),
        ({"model": "a\x00b"}, "model"),
        ({"discount": 1}, "discount"),
    ],
)
def test_bad_input_names_the_field(operator: Party, changes: dict[str, Any], field: str) -> None:
    answer = operator.api.post(URL, BODY | changes, format="json")
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.content
    assert not Grade.objects.exists()
