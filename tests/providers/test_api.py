"""Hosts and offerings over HTTP, and mallory."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import time_machine
from django.test import Client
from rest_framework.test import APIClient

from marketplace.ids import uuid7
from providers.models import Host, Offering
from tests.cast import Party, Plant

HOST = {"name": "rack-2", "region": "eu", "site": "Hamburg"}


def test_a_provider_makes_a_host_and_gets_a_code(hyperion: Party) -> None:
    made = hyperion.api.post("/api/v1/hosts", HOST, format="json")
    assert (made.status_code, made.json()["status"]) == (201, "pending")
    url = f"/api/v1/hosts/{made.json()['id']}"
    code = hyperion.api.post(f"{url}/enrolment-codes", {}, format="json")
    assert code.status_code == 201
    assert code.json()["code"].startswith("tye_")
    shown = hyperion.api.get(url).json()
    assert (shown["bench"], shown["capacity"]["sold_ppm"]) == (None, 0)
    assert "code" not in shown
    assert "public_key" not in shown
    again = hyperion.api.post("/api/v1/hosts", HOST, format="json")
    assert (again.status_code, again.json()["field"]) == (409, "name")


def test_a_host_shows_what_was_claimed_beside_what_was_measured(plant: Plant, hyperion: Party) -> None:
    shown = hyperion.api.get(f"/api/v1/hosts/{plant.host.id}").json()
    assert shown["hardware"]["cpu"] == "test"
    assert shown["bench"]["output_tokens"] == 800
    assert shown["capacity"]["unsold_ppm"] == shown["capacity"]["sellable_ppm"]


def test_prices_are_listed_changed_and_shown_per_bucket(plant: Plant, hyperion: Party) -> None:
    body = {
        "host_id": str(plant.host.id),
        "grade": "tiny-chat",
        "spot_floor_micros_per_mtok": 0,
        "firm_rate_micros_per_mtok": 500_000,
        "list_rate_micros_per_mtok": 1_000_000,
    }
    answer = hyperion.api.post("/api/v1/offerings", body, format="json")
    assert answer.status_code == 200, answer.content
    shown = answer.json()
    assert (shown["id"], shown["list_rate_micros_per_mtok"]) == (str(plant.offering.id), 1_000_000)
    assert shown["list_prices_per_mtok"]["output"] == "1"  # 1.00 x 4.0 x 0.25
    assert hyperion.api.get(f"/api/v1/offerings/{plant.offering.id}").json() == shown
    assert hyperion.api.get("/api/v1/offerings").json() == {"items": [shown], "next": None}


def test_status_is_changed_by_its_owner(plant: Plant, hyperion: Party) -> None:
    host, offering = f"/api/v1/hosts/{plant.host.id}", f"/api/v1/offerings/{plant.offering.id}"
    for url, status in ((host, "paused"), (host, "enrolled"), (offering, "paused"), (offering, "withdrawn")):
        answer = hyperion.api.patch(url, {"status": status}, format="json")
        assert (answer.status_code, answer.json()["status"]) == (200, status)
    refused = hyperion.api.patch(offering, {"status": "listed"}, format="json")
    assert (refused.status_code, refused.json()["field"]) == (409, "status")


def test_a_tariff_is_announced_listed_and_withdrawn(plant: Plant, hyperion: Party, now: datetime) -> None:
    url = f"/api/v1/offerings/{plant.offering.id}"
    body = {
        "kind": "time_of_use",
        "valid_from": "2026-03-10T13:00:00Z",
        "rate_micros_per_mtok": 500_000,
        "windows": [{"start_s": 79_200, "end_s": 21_600, "rate_micros_per_mtok": 250_000}],
    }
    with time_machine.travel(now, tick=False):
        made = hyperion.api.post(f"{url}/tariffs", body, format="json")
        assert made.status_code == 201, made.content
        tariff = made.json()
        assert (tariff["status"], tariff["withdrawn_at"]) == ("announced", None)
        slots = [(one["start_s"], one["end_s"], one["rate_micros_per_mtok"]) for one in tariff["slots"]]
        assert slots == [(0, 21_600, 250_000), (21_600, 79_200, 500_000), (79_200, 86_400, 250_000)]
        assert tariff["slots"][0]["rate_id"] == tariff["slots"][2]["rate_id"]
        assert hyperion.api.post(f"{url}/tariffs", body, format="json").json() == tariff
        assert hyperion.api.get(f"{url}/tariffs").json() == {"items": [tariff], "next": None}
        assert hyperion.api.get(url).json()["list_rate_micros_per_mtok"] == 600_000
    with time_machine.travel(now.replace(hour=23), tick=False):
        shown = hyperion.api.get(url).json()
        assert shown["list_rate_micros_per_mtok"] == 250_000
        assert shown["list_rate_id"] == tariff["slots"][0]["rate_id"]
        assert shown["list_prices_per_mtok"]["output"] == "0.25"
        assert hyperion.api.get("/api/v1/offerings").json()["items"] == [shown]
        assert hyperion.api.get(f"{url}/tariffs").json()["items"][0]["status"] == "begun"
        assert hyperion.api.delete(f"{url}/tariffs/{tariff['id']}").status_code == 409
    with time_machine.travel(now, tick=False):
        assert hyperion.api.delete(f"{url}/tariffs/{tariff['id']}").status_code == 204
        assert hyperion.api.get(f"{url}/tariffs").json()["items"][0]["status"] == "withdrawn"


def test_mallory_sees_nothing_and_changes_nothing(plant: Plant, mallory: Party) -> None:
    host, offering = f"/api/v1/hosts/{plant.host.id}", f"/api/v1/offerings/{plant.offering.id}"
    prices = {
        "host_id": str(plant.host.id),
        "grade": "tiny-chat",
        "spot_floor_micros_per_mtok": 1,
        "firm_rate_micros_per_mtok": 1,
        "list_rate_micros_per_mtok": 1,
    }
    answers = [
        mallory.api.get(host),
        mallory.api.patch(host, {"status": "paused"}, format="json"),
        mallory.api.post(f"{host}/enrolment-codes", {}, format="json"),
        mallory.api.get(offering),
        mallory.api.patch(offering, {"status": "withdrawn"}, format="json"),
        mallory.api.post("/api/v1/offerings", prices, format="json"),
    ]
    unknown = mallory.api.get(f"/api/v1/hosts/{uuid7()}")
    assert [answer.status_code for answer in answers] == [404] * len(answers)
    assert answers[0].json() == unknown.json()  # Foreign and unknown are not told apart.
    for url in ("/api/v1/hosts", "/api/v1/offerings"):
        assert mallory.api.get(url).json() == {"items": [], "next": None}
    assert Host.objects.get(pk=plant.host.pk).status == "enrolled"
    assert Offering.objects.get(pk=plant.offering.pk).list_rate_id == plant.offering.list_rate_id


def test_a_buyer_and_a_stranger_get_no_hosts(plant: Plant, acme: Party) -> None:
    for path in ("hosts", f"hosts/{plant.host.id}", "offerings", f"offerings/{plant.offering.id}"):
        assert acme.api.get(f"/api/v1/{path}").status_code == 403
        assert APIClient().get(f"/api/v1/{path}").status_code == 401
    assert acme.api.post("/api/v1/hosts", HOST, format="json").status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("hosts", HOST | {"name": ""}, "name"),
        ("hosts", HOST | {"name": "n" * 65}, "name"),
        ("hosts", HOST | {"name": 5}, "name"),
        ("hosts", HOST | {"name": "\x07bell"}, "name"),
        ("hosts", HOST | {"region": None}, "region"),
        ("hosts", HOST | {"owner": "me"}, "owner"),
        ("offerings", {"host_id": "1"}, "host_id"),
    ],
)
def test_bad_input_names_the_field(hyperion: Party, path: str, body: dict[str, Any], field: str) -> None:
    answer = hyperion.api.post(f"/api/v1/{path}", body, format="json")
    assert answer.status_code == 422
    assert field in {error["field"] for error in answer.json()["errors"]}
    assert not Host.objects.exists()


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, "5", True, None, [1]])
def test_a_strange_price_is_refused(plant: Plant, hyperion: Party, value: object) -> None:
    body = {
        "host_id": str(plant.host.id),
        "grade": "tiny-chat",
        "spot_floor_micros_per_mtok": value,
        "firm_rate_micros_per_mtok": 1,
        "list_rate_micros_per_mtok": 1,
    }
    answer = hyperion.api.post("/api/v1/offerings", body, format="json")
    assert (answer.status_code, answer.json()["field"]) == (422, "spot_floor_micros_per_mtok")


def test_an_unknown_grade_is_named(plant: Plant, hyperion: Party) -> None:
    body = {
        "host_id": str(plant.host.id),
        "grade": "unobtainium",
        "spot_floor_micros_per_mtok": 1,
        "firm_rate_micros_per_mtok": 1,
        "list_rate_micros_per_mtok": 1,
    }
    answer = hyperion.api.post("/api/v1/offerings", body, format="json")
    assert (answer.status_code, answer.json()["field"]) == (404, "grade")


def test_lists_cost_a_constant_number_of_queries(
    plant: Plant, hyperion: Party, now: datetime, django_assert_max_num_queries: Any
) -> None:
    for index in range(10):
        hyperion.api.post("/api/v1/hosts", HOST | {"name": f"h-{index}"}, format="json")
    with django_assert_max_num_queries(5):
        assert len(hyperion.api.get("/api/v1/hosts").json()["items"]) == 11
    with django_assert_max_num_queries(6):
        hyperion.api.get("/api/v1/offerings")


def test_the_schema_names_every_operation(db: None) -> None:
    document = Client().get("/api/v1/schema", headers={"Accept": "application/json"}).json()
    named = {operation["operationId"] for item in document["paths"].values() for operation in item.values()}
    assert {"grades_list", "grades_publish", "hosts_create", "offerings_change", "agent_heartbeat"} <= named
