"""A buyer's own kappa: exact sums of the recounts of his own requests, beside the grade's figure, and nobody else's."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import time_machine
from django.test import Client

from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from metering.services import accept_batch, add_meter_point, gateway_source, ingest_batches
from metering.usage import Finish, UsageEvent, encode_event, encode_lines
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.world import on_demand
from tests.cast import PASSWORD, Party, Plant, make_grade, make_plant

URL = "/api/v1/usage/kappa"


def metered(
    contract: Contract,
    plant: Plant,
    at: datetime,
    *,
    output: int,
    recount: int | None,
    reasoning: int | None = None,
) -> None:
    """One request, as the gateway hands it in, ingested."""
    add_meter_point(
        contract_id=contract.id,
        offering_id=plant.offering.id,
        host_id=plant.host.id,
        grade_id=contract.grade_id,
        valid_from=at - timedelta(days=60),
    )
    buckets: dict[Bucket, int | None] = {Bucket.UNCACHED_INPUT: 1_000, Bucket.OUTPUT: output}
    event = UsageEvent(
        id=uuid7(at), sequence=1, request_id=uuid7(at), attempt=0, part=0, contract_id=contract.id,
        offering_id=plant.offering.id, grade_id=contract.grade_id, rate_id=plant.offering.list_rate_id,
        period_start=at, occurred_at=at, buckets=buckets | {Bucket.REASONING: reasoning}, finish=Finish.STOP,
        bytes_in=1, bytes_out=1, duration_ms=1, recount_o200k=recount,
    )  # fmt: skip
    accept_batch(source=gateway_source(at), body=encode_lines([encode_event(event)]), now=at)
    assert ingest_batches(now=at) == 1


def test_own_kappa_is_the_quotient_of_what_was_recounted(
    acme: Party, mallory: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    contract = on_demand(acme, grade, now)
    metered(contract, plant, now, output=300, recount=100)
    metered(contract, plant, now + timedelta(hours=1), output=90, reasoning=10, recount=34)
    # Not recounted: it says nothing about kappa.
    metered(contract, plant, now + timedelta(hours=2), output=5_000, recount=None)
    until = (now + timedelta(hours=3)).isoformat()
    shown = acme.api.get(URL, {"until": until})
    assert shown.status_code == 200, shown.content
    assert shown.json() == {
        "items": [
            {
                "grade": "tiny-chat",
                "grade_id": str(grade.id),
                "grade_version": 1,
                "recounted_tokens": 400,
                "recount_o200k_tokens": 134,
                "kappa_ppm": 335_000,
                "grade_kappa_ppm": 250_000,
            }
        ],
        "next": None,
    }
    same = acme.api.get(URL, {"until": until, "contract_id": str(contract.id)})
    assert same.json() == shown.json()
    # The span is half-open, by the period's start.
    first = {"since": now.isoformat(), "until": (now + timedelta(hours=1)).isoformat()}
    [item] = acme.api.get(URL, first).json()["items"]
    assert (item["recounted_tokens"], item["kappa_ppm"]) == (300, 333_333)
    assert acme.api.get(URL, {"until": now.isoformat()}).json()["items"] == []
    assert acme.api.get(URL, {"until": (now + timedelta(days=31)).isoformat()}).json()["items"] == []
    # Nobody else sees it, by whatever name.
    assert mallory.api.get(URL, {"until": until}).json()["items"] == []
    assert mallory.api.get(URL, {"until": until, "contract_id": str(contract.id)}).status_code == 404


def test_grades_stand_apart_and_contracts_of_one_grade_together(
    acme: Party, hyperion: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    other = make_grade(now, slug="large-chat", model="large-chat")
    contract = on_demand(acme, grade, now)
    metered(contract, plant, now, output=100, recount=25)
    metered(
        on_demand(acme, other, now), make_plant(hyperion, other, now, name="h2"), now, output=50, recount=50
    )
    items = acme.api.get(URL, {"until": (now + timedelta(hours=1)).isoformat()}).json()["items"]
    assert [(item["grade"], item["kappa_ppm"]) for item in items] == [
        ("large-chat", 1_000_000),
        ("tiny-chat", 250_000),
    ]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-03-10"}, "until"),
        ({"since": "2026-03-10T12:00:00Z", "until": "2026-03-10T12:00:00Z"}, "since"),
        ({"contract_id": "1"}, "contract_id"),
        ({"grade": "tiny-chat"}, "grade"),
    ],
)
def test_bad_questions_name_the_field(acme: Party, asked: dict[str, str], field: str) -> None:
    answer = acme.api.get(URL, asked)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_the_portal_shows_it_beside_the_grades(
    acme: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    contract = on_demand(acme, grade, now)
    with time_machine.travel(now + timedelta(hours=1), tick=False):
        browser = Client()
        assert browser.login(username=acme.user.email, password=PASSWORD)
        for path in ("/buyer", f"/buyer/contracts/{contract.id}"):
            assert "Your own kappa" not in browser.get(path).content.decode(), "nothing was recounted yet"
        metered(contract, plant, now, output=300, recount=100)
        for path in ("/buyer", f"/buyer/contracts/{contract.id}"):
            shown = browser.get(path).content.decode()
            row = shown[shown.index("Your own kappa") :]
            assert "0.333333" in row, path
            assert "0.25" in row
            assert 'href="/tokenizers"' in row
            assert "in the last 30 days" in row
        day = now.date().isoformat()
        asked = {"slice": "day", "by": "model", "since": day, "until": day}
        usage = browser.get("/buyer/usage", asked).content.decode()
        assert "0.333333" in usage[usage.index("Your own kappa") :]
        before = {"since": "2026-03-01", "until": "2026-03-02"}
        assert "Your own kappa" not in browser.get("/buyer/usage", asked | before).content.decode()
