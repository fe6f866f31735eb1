"""The one-time code, the host's key, and the requests signed with it."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.test import override_settings
from rest_framework.test import APIClient

from marketplace import clock
from marketplace.accounts.services import SYSTEM
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from metering.models import MeterSource
from providers import services
from providers.models import EnrolmentCode, Host, Offering
from providers.services import EnrolmentCodeRefused, HostSignatureRefused
from providers.wire import sign_request
from tests.cast import Party, Plant

API = "http://testserver/api/v1"
BENCH = {
    "duration_ms": 1_000,
    "requests": 8,
    "concurrency": 4,
    "input_tokens": 400,
    "output_tokens": 1_600,
    "first_byte_p50_ms": 10,
    "first_byte_p95_ms": 20,
}


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@pytest.fixture
def host(hyperion: Party, now: datetime) -> Host:
    return services.create_host(
        organization_id=hyperion.id, name="h", region="eu", site="", now=now, actor=SYSTEM
    )


def issue(hyperion: Party, host: Host, now: datetime) -> str:
    return services.issue_enrolment_code(organization_id=hyperion.id, host_id=host.id, now=now, actor=SYSTEM)


def enrol(code: str, now: datetime, key: Ed25519PrivateKey | None = None, **changes: Any) -> Host:
    claims: dict[str, Any] = {
        "code": code,
        "public_key": raw(key or Ed25519PrivateKey.generate()),
        "base_url": "http://127.0.0.1:8101/",
        "hardware": {"cpu_cores": 2},
        "engine": {"kind": "llamacpp"},
    }
    return services.enrol_host(now=now, **claims | changes)


def test_a_code_enrols_once(hyperion: Party, host: Host, now: datetime) -> None:
    code = issue(hyperion, host, now)
    enrolled = enrol(code, now + timedelta(minutes=59))
    assert (enrolled.pk, enrolled.status, enrolled.base_url) == (host.pk, "enrolled", "http://127.0.0.1:8101")
    assert enrolled.source is not None
    assert (enrolled.source.kind, enrolled.source.host_id) == ("agent", host.pk)
    assert not EnrolmentCode.objects.filter(code_sha256=code.encode()).exists()
    with pytest.raises(EnrolmentCodeRefused):
        enrol(code, now + timedelta(minutes=59))


def test_the_same_agent_may_ask_again_when_the_answer_was_lost(
    hyperion: Party, host: Host, now: datetime
) -> None:
    code, key = issue(hyperion, host, now), Ed25519PrivateKey.generate()
    first = enrol(code, now, key)
    assert enrol(code, now + timedelta(minutes=1), key).source_id == first.source_id
    assert MeterSource.objects.filter(host_id=host.pk).count() == 1


def test_unknown_used_expired_and_replaced_codes_get_one_answer(
    hyperion: Party, host: Host, now: datetime
) -> None:
    replaced = issue(hyperion, host, now)
    code = issue(hyperion, host, now)
    answers = set()
    for tried, at in (("tye_guess", now), ("\ud800", now), (replaced, now), (code, now + timedelta(hours=1))):
        with pytest.raises(EnrolmentCodeRefused) as refused:
            enrol(tried, at)
        answers.add((refused.value.detail, refused.value.field, refused.value.code))
    enrol(code, now)
    with pytest.raises(EnrolmentCodeRefused) as refused:
        enrol(code, now)
    answers.add((refused.value.detail, refused.value.field, refused.value.code))
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"public_key": b"short"}, "public_key"),
        ({"base_url": "ftp://127.0.0.1"}, "base_url"),
        ({"hardware": {"blob": "x" * 20_000}}, "hardware"),
        ({"hardware": {"bad": float("nan")}}, "hardware"),
        ({"engine": {"name": "nul\x00"}}, "engine"),
        ({"engine": {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}}}, "engine"),
        ({"engine": []}, "engine"),
    ],
)
def test_a_bad_claim_leaves_the_code_good(
    hyperion: Party, host: Host, now: datetime, changes: dict[str, Any], field: str
) -> None:
    code = issue(hyperion, host, now)
    with pytest.raises(InvalidInput) as refused:
        enrol(code, now, **changes)
    assert refused.value.field == field
    assert enrol(code, now).status == Host.Status.ENROLLED


@override_settings(ALLOW_PRIVATE_HOSTS=False)
def test_an_open_market_takes_no_private_address(hyperion: Party, host: Host, now: datetime) -> None:
    code = issue(hyperion, host, now)
    with pytest.raises(InvalidInput) as refused:
        enrol(code, now, base_url="http://169.254.169.254/")
    assert refused.value.field == "base_url"


def test_a_lost_key_is_replaced_and_the_old_meter_closed(
    plant: Plant, hyperion: Party, now: datetime
) -> None:
    old = plant.host.source_id
    assert old is not None
    code = issue(hyperion, plant.host, now)
    assert MeterSource.objects.get(pk=old).status == "active"  # Until the code is used.
    again = enrol(code, now, base_url="http://127.0.0.1:8102")
    assert again.source_id != old
    assert MeterSource.objects.get(pk=old).status == "closed"
    assert Host.objects.get(pk=plant.host.pk).ready is False


# Over HTTP -----------------------------------------------------------------------------------------------------


def post(
    path: str,
    value: object,
    key: Ed25519PrivateKey,
    key_id: object,
    *,
    nonce: str | None = None,
    at: datetime | None = None,
    body: bytes | None = None,
    signed: bytes | None = None,
) -> Any:
    content = json.dumps(value).encode() if body is None else body
    headers = sign_request(
        method="POST",
        url=API + path,
        body=content if signed is None else signed,
        private_key=key,
        key_id=str(key_id),
        nonce=nonce or secrets.token_urlsafe(18),
        now=at or clock.wall_now(),
    )
    client = APIClient()
    return client.post("/api/v1" + path, content, content_type="application/json", headers=headers)


BEAT = {"boot_id": "b", "ready": True, "in_flight": 0, "registers": {}, "energy_millijoules": None}


def test_an_agent_enrols_benches_lists_and_beats(
    hyperion: Party, host: Host, grade: object, now: datetime
) -> None:
    key = Ed25519PrivateKey.generate()
    claim = {
        "code": issue(hyperion, host, clock.now()),
        "public_key": base64.b64encode(raw(key)).decode(),
        "base_url": "http://127.0.0.1:8101",
        "hardware": {"accelerators": [], "driver": None},
        "engine": {"kind": "llamacpp", "context_tokens": 4_096},
    }
    answer = post("/agent/enrol", claim, key, "enrolment")
    assert answer.status_code == 201, answer.content
    said = answer.json()
    assert said["host_id"] == str(host.pk)
    assert len(base64.b64decode(said["market_public_key"])) == 32
    Ed25519PublicKey.from_public_bytes(base64.b64decode(said["market_public_key"]))
    assert UUID(said["source_id"]) == Host.objects.get(pk=host.pk).source_id

    assert post("/agent/bench", BENCH, key, host.pk).status_code == 201
    terms = {
        "grade": "tiny-chat",
        "spot_floor_micros_per_mtok": 1,
        "firm_rate_micros_per_mtok": 2,
        "list_rate_micros_per_mtok": 3,
    }
    listed = post("/agent/offerings", terms, key, said["source_id"])  # The source's id is as good a key id.
    assert listed.status_code == 200, listed.content
    assert listed.json()["id"] == str(Offering.objects.get().pk)
    assert post("/agent/offerings", terms, key, host.pk).json()["id"] == listed.json()["id"]
    beat = BEAT | {
        "at": "2026-03-10T12:00:00.5Z",
        "registers": {"prompt_tokens_total": 5, "requests_running": 0, "engine_boot": None},
    }
    answer = post("/agent/heartbeat", beat, key, host.pk)
    assert (answer.status_code, answer.json()["status"]) == (200, "enrolled")
    assert Host.objects.get(pk=host.pk).ready


def test_enrolment_proves_the_private_key(hyperion: Party, host: Host, now: datetime) -> None:
    claim = {
        "code": issue(hyperion, host, clock.now()),
        "public_key": base64.b64encode(raw(Ed25519PrivateKey.generate())).decode(),
        "base_url": "http://127.0.0.1:8101",
        "hardware": {},
        "engine": {},
    }
    answer = post("/agent/enrol", claim, Ed25519PrivateKey.generate(), "enrolment")
    assert (answer.status_code, answer.json()["code"]) == (401, "signature_refused")
    assert Host.objects.get(pk=host.pk).status == Host.Status.PENDING


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"public_key": "AAAA"}, "public_key"),
        ({"public_key": "!" * 44}, "public_key"),
        ({"code": 5}, "code"),
        ({"hardware": "big"}, "hardware"),
        ({"more": 1}, "more"),
    ],
)
def test_a_bad_enrolment_names_the_field(db: None, changes: dict[str, Any], field: str) -> None:
    key = Ed25519PrivateKey.generate()
    claim = {
        "code": "tye_x",
        "public_key": base64.b64encode(raw(key)).decode(),
        "base_url": "http://127.0.0.1:1",
        "hardware": {},
        "engine": {},
    }
    answer = post("/agent/enrol", claim | changes, key, "enrolment")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_a_request_is_believed_once(plant: Plant) -> None:
    nonce = secrets.token_urlsafe(18)
    at = clock.wall_now()
    assert (
        post("/agent/heartbeat", BEAT, plant.private_key, plant.host.pk, nonce=nonce, at=at).status_code
        == 200
    )
    again = post("/agent/heartbeat", BEAT, plant.private_key, plant.host.pk, nonce=nonce, at=at)
    assert (again.status_code, again.json()["code"]) == (401, "signature_refused")


def test_forged_stale_and_altered_requests_are_refused(plant: Plant, now: datetime) -> None:
    own, host_id = plant.private_key, plant.host.pk
    body = json.dumps(BEAT).encode()
    answers = [
        post("/agent/heartbeat", BEAT, Ed25519PrivateKey.generate(), host_id),
        post("/agent/heartbeat", BEAT, own, uuid7()),
        post("/agent/heartbeat", BEAT, own, "no id"),
        post("/agent/heartbeat", BEAT, own, host_id, at=clock.wall_now() - timedelta(minutes=6)),
        post("/agent/heartbeat", BEAT, own, host_id, at=clock.wall_now() + timedelta(minutes=6)),
        post("/agent/heartbeat", BEAT, own, host_id, body=body, signed=body.replace(b"true", b"false")),
        APIClient().post("/api/v1/agent/heartbeat", BEAT, format="json"),
        APIClient().post(
            "/api/v1/agent/bench", BENCH, format="json", headers={"Signature-Input": "x=();keyid="}
        ),
    ]
    assert [answer.status_code for answer in answers] == [401] * len(answers)
    assert Host.objects.get(pk=host_id).last_heartbeat_at == now


def test_one_hosts_key_does_not_speak_for_another(plant: Plant, mallory: Party, now: datetime) -> None:
    host = services.create_host(
        organization_id=mallory.id, name="m", region="eu", site="", now=now, actor=SYSTEM
    )
    key = Ed25519PrivateKey.generate()
    enrol(
        services.issue_enrolment_code(organization_id=mallory.id, host_id=host.id, now=now, actor=SYSTEM),
        now,
        key,
    )
    assert post("/agent/heartbeat", BEAT, key, plant.host.pk).status_code == 401
    assert post("/agent/heartbeat", BEAT, key, host.pk).status_code == 200


def test_a_signature_for_one_address_is_none_for_another(plant: Plant) -> None:
    body = json.dumps(BEAT).encode()
    headers = sign_request(
        method="POST",
        url=API + "/agent/bench",
        body=body,
        private_key=plant.private_key,
        key_id=str(plant.host.pk),
        nonce="n",
        now=clock.wall_now(),
    )
    answer = APIClient().post(
        "/api/v1/agent/heartbeat", body, content_type="application/json", headers=headers
    )
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("/agent/heartbeat", BEAT | {"ready": "yes"}, "ready"),
        ("/agent/heartbeat", BEAT | {"in_flight": 1.0}, "in_flight"),
        (
            "/agent/heartbeat",
            BEAT | {"registers": {"output_tokens_total": -1}},
            "registers.output_tokens_total",
        ),
        ("/agent/heartbeat", BEAT | {"energy_millijoules": 2**63}, "energy_millijoules"),
        ("/agent/heartbeat", BEAT | {"more": 1}, "more"),
        ("/agent/bench", BENCH | {"output_tokens": 0}, "output_tokens"),
        ("/agent/bench", BENCH | {"first_byte_p95_ms": 1}, "first_byte_p95_ms"),
        ("/agent/offerings", {"grade": "tiny-chat"}, "spot_floor_micros_per_mtok"),
    ],
)
def test_a_bad_body_names_the_field(plant: Plant, path: str, value: object, field: str) -> None:
    answer = post(path, value, plant.private_key, plant.host.pk)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_bodies_are_bounded_and_json(plant: Plant) -> None:
    key, host_id = plant.private_key, plant.host.pk
    assert post("/agent/heartbeat", None, key, host_id, body=b" " * 70_000).status_code == 413
    for body in (b"", b"{", b"\xff", b'{"ready": NaN}', b'{"a": 1, "a": 2}'):
        assert post("/agent/heartbeat", None, key, host_id, body=body).status_code in (400, 422), body


def test_a_service_refusal_is_a_signature_refusal(plant: Plant) -> None:
    with pytest.raises(HostSignatureRefused):
        services.authenticate_host(method="POST", url=API, headers={}, body=b"", now=clock.wall_now())
