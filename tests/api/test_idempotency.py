from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings

from marketplace import clock
from marketplace.accounts.models import AuditEntry
from marketplace.api.models import IdempotencyRecord
from tests.cast import Party, make_party
from tests.conftest import TestDatabase

pytestmark = pytest.mark.urls("tests.api.probe")


def post(party: Party, body: dict[str, Any], key: str | None = "k-1") -> Any:
    headers: dict[str, Any] = {} if key is None else {"HTTP_IDEMPOTENCY_KEY": key}
    return party.api.post("/api/v1/effect", body, format="json", **headers)


def effects() -> int:
    return AuditEntry.objects.filter(action="probe.done").count()


def test_the_same_request_again_gets_the_byte_identical_answer(acme: Party) -> None:
    first, second = post(acme, {"count": 5}), post(acme, {"count": 5})
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert first["Content-Type"] == second["Content-Type"]
    assert second["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first
    assert effects() == 1
    assert AuditEntry.objects.get(action="probe.done").object_id == IdempotencyRecord.objects.get().id


def test_another_body_under_the_same_key_is_refused(acme: Party) -> None:
    first = post(acme, {"count": 5})
    answer = post(acme, {"count": 6})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert answer.json()["field"] == "Idempotency-Key"
    assert post(acme, {"count": 5}).content == first.content
    assert effects() == 1


def test_keys_of_two_organizations_are_strangers(acme: Party, mallory: Party) -> None:
    assert post(acme, {"count": 5}).content != post(mallory, {"count": 5}).content
    assert post(mallory, {"count": 6}).status_code == 422
    assert effects() == 2


@pytest.mark.parametrize("key", [None, "", "x" * 256, "a b", "naïve"])
def test_a_missing_or_bad_key_is_400_and_names_the_header(acme: Party, key: str | None) -> None:
    answer = post(acme, {}, key)
    assert (answer.status_code, answer.json()["field"]) == (400, "Idempotency-Key")
    assert effects() == 0


def test_a_domain_problem_is_an_answer_and_its_effect_is_undone(acme: Party) -> None:
    first, second = post(acme, {"count": 1}), post(acme, {"count": 1})
    assert (first.status_code, first.content) == (402, second.content)
    assert first["Content-Type"] == second["Content-Type"] == "application/problem+json"
    assert effects() == 0


def test_a_malformed_request_frees_its_key(acme: Party) -> None:
    assert post(acme, {"count": "five"}).status_code == 422
    assert post(acme, {"count": 5}).status_code == 201


def test_a_problem_that_says_when_to_come_back_is_not_kept(acme: Party) -> None:
    answer = post(acme, {"count": 2})
    assert (answer.status_code, answer["Retry-After"]) == (409, "5")
    assert not IdempotencyRecord.objects.exists()


def test_after_a_crash_the_retry_goes_on_under_the_same_operation_id(acme: Party) -> None:
    with pytest.raises(RuntimeError):
        post(acme, {"count": 3})
    record = IdempotencyRecord.objects.get()
    assert record.response_status is None
    assert effects() == 0
    with pytest.raises(RuntimeError):
        post(acme, {"count": 3})
    assert IdempotencyRecord.objects.get().id == record.id


def test_a_request_in_progress_answers_409_until_its_lease_is_over(acme: Party) -> None:
    post(acme, {"count": 5})
    in_progress = IdempotencyRecord.objects.filter(key="k-1")
    in_progress.update(response_status=None, locked_until=clock.wall_now() + timedelta(minutes=1))
    answer = post(acme, {"count": 5})
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_progress")
    assert answer["Retry-After"] == "1"
    in_progress.update(locked_until=clock.wall_now() - timedelta(seconds=1))
    assert post(acme, {"count": 5}).status_code == 201


def test_twenty_at_once_have_one_effect(committed_db: TestDatabase, now: datetime) -> None:
    acme = make_party("Acme", ["buyer"], now)
    gate = threading.Barrier(20)

    def send(_: int) -> tuple[int, bytes]:
        try:
            gate.wait()
            answer = post(acme, {"count": 5})
            return answer.status_code, answer.content if answer.status_code == 201 else b""
        finally:
            connection.close()

    with override_settings(ROOT_URLCONF="tests.api.probe"), ThreadPoolExecutor(20) as pool:
        answers = Counter(pool.map(send, range(20)))
    statuses = {status for status, _ in answers}
    assert statuses <= {201, 409}
    assert len([content for status, content in answers if status == 201]) == 1
    assert effects() == 1
