"""Guessing passwords is slow, and nobody is told which part was wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.cache import cache
from django.test import Client

from marketplace.accounts.throttling import (
    MOST_WRONG_BY_EMAIL,
    MOST_WRONG_BY_IP,
    may_sign_in,
    note_wrong_sign_in,
)
from tests.cast import PASSWORD, Party


@pytest.fixture(autouse=True)
def _no_earlier_attempts(db: None) -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def attempt(client: Client, email: str, password: str) -> int:
    return client.post("/signin", {"email": email, "password": password}).status_code


def test_after_ten_wrong_attempts_even_the_right_password_waits(acme: Party, client: Client) -> None:
    for _ in range(MOST_WRONG_BY_EMAIL):
        assert attempt(client, acme.user.email, "wrong") == 422
    assert attempt(client, acme.user.email, PASSWORD) == 429
    cache.clear()  # Five minutes later.
    assert attempt(client, acme.user.email, PASSWORD) == 302


def test_another_person_at_another_address_is_not_kept_out(acme: Party, mallory: Party) -> None:
    for _ in range(MOST_WRONG_BY_IP):
        note_wrong_sign_in(email=acme.user.email, ip="192.0.2.1")
    assert not may_sign_in(email=acme.user.email.upper(), ip="192.0.2.2")
    assert not may_sign_in(email=mallory.user.email, ip="192.0.2.1")
    assert may_sign_in(email=mallory.user.email, ip="192.0.2.2")
