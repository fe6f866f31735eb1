"""Customers keep their endpoints themselves; what is no public address is refused, by name."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from pytest_django import Settings

from marketplace.webhooks.models import WebhookEndpoint
from marketplace.webhooks.services import MOST_ENDPOINTS
from tests.cast import Party, make_party

PATH = "/api/v1/webhook-endpoints"
URL = "https://hooks.acme.example/tokenyard"


@pytest.fixture
def acme(db: None, now: datetime) -> Party:
    return make_party("Acme", ["buyer"], now)


def post(party: Party, path: str = PATH, **body: Any) -> Any:
    return party.api.post(path, body, format="json")


def test_a_day_with_an_endpoint(acme: Party) -> None:
    made = post(acme, url=URL, event_types=["invoice.issued", "bid.awarded"]).json()
    assert made["event_types"] == ["bid.awarded", "invoice.issued"]
    (secret,) = made["signing_secrets"]
    assert secret.startswith("whsec_")
    path = f"{PATH}/{made['id']}"
    assert "signing_secrets" not in acme.api.get(PATH).json()["items"][0]
    assert acme.api.get(path).json()["signing_secrets"] == [secret]

    assert post(acme, f"{path}/test").status_code == 202
    (delivery,) = acme.api.get(f"{path}/deliveries").json()["items"]
    assert (delivery["type"], delivery["status"], delivery["tries"]) == ("endpoint.test", "pending", [])
    (event,) = acme.api.get("/api/v1/webhook-events").json()["items"]
    assert event["payload"]["data"] == {"endpoint_id": made["id"]}
    # A test goes to the endpoint it is for, whatever that listens to; its replay only to who listens to tests.
    assert post(acme, f"/api/v1/webhook-events/{event['id']}/replay").json() == {"deliveries": 0}

    rotated = post(acme, f"{path}/rotate-secret").json()
    assert rotated["signing_secrets"][1:] == [secret]
    assert post(acme, f"{path}/rotate-secret").status_code == 409

    changed = acme.api.patch(path, {"status": "disabled"}, format="json").json()
    assert (changed["status"], changed["disabled_reason"]) == ("disabled", "asked")
    assert acme.api.get(f"{path}/deliveries").json()["items"][0]["status"] == "failed"
    assert post(acme, f"{path}/test").json()["errors"][0]["field"] == "status"
    assert acme.api.patch(path, {"status": "active"}, format="json").json()["disabled_reason"] == ""
    assert acme.api.delete(path).status_code == 204
    assert acme.api.get(path).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.acme.example/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://0x7f.1/",
        "https://user:secret@hooks.acme.example/",
        "https://hooks.acme.example:22/",
        "ftp://hooks.acme.example/",
        "https://hooks.acme.example/#fragment",
        "",
        "hooks",
    ],
)
def test_where_the_market_must_not_go_is_refused(acme: Party, settings: Settings, url: str) -> None:
    settings.ALLOW_PRIVATE_HOSTS = False
    answer = post(acme, url=url)
    assert answer.status_code == 422, answer.content
    assert answer.json()["errors"][0]["field"] == "url"
    assert not WebhookEndpoint.objects.exists()


def test_unknown_types_repeats_and_too_many_are_refused(acme: Party) -> None:
    for event_types in ([], ["invoice.made"], ["invoice.paid", "invoice.paid"]):
        assert post(acme, url=URL, event_types=event_types).json()["errors"][0]["field"] == "event_types"
    for number in range(MOST_ENDPOINTS):
        assert post(acme, url=f"{URL}/{number}").status_code == 201
    assert post(acme, url=f"{URL}/more").status_code == 409
    acme.api.delete(f"{PATH}/{acme.api.get(PATH).json()['items'][0]['id']}")
    again = post(acme, url=f"{URL}/0")
    assert (again.status_code, again.json()["errors"][0]["field"]) == (409, "url")
