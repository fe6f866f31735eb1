"""People as a way around what a key may do, and as a way to learn who uses the market."""

from __future__ import annotations

from datetime import datetime

import pytest
from rest_framework.test import APIClient

from marketplace.accounts.models import Membership, User
from marketplace.accounts.services import SYSTEM, create_api_key
from tests.cast import Party

MEMBERS = "/api/v1/members"


def person(role: str, **more: str) -> dict[str, str]:
    return {"email": "new@mallory.example", "role": role, "initial_password": "a-long-password-9"} | more


@pytest.mark.parametrize("role", ["owner", "member"])
def test_a_key_makes_nobody_who_may_do_more_than_it(acme: Party, now: datetime, role: str) -> None:
    """An owner makes any key in the portal: through him, a key of people and keys would spend money."""
    _, text = create_api_key(
        organization_id=acme.id, label="", scopes=["read", "manage"], now=now, actor=SYSTEM
    )
    weaker = APIClient()
    weaker.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    refused = weaker.post(MEMBERS, person(role), format="json")
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_not_allowed")
    assert not User.objects.filter(email="new@mallory.example").exists()
    assert weaker.post(MEMBERS, person("viewer"), format="json").status_code == 201
    full = acme.api.post(MEMBERS, person(role, email="other@mallory.example"), format="json")
    assert full.status_code == 201


def test_a_refused_password_does_not_tell_who_signs_in_here(acme: Party, mallory: Party) -> None:
    """Otherwise anybody's address could be tried without leaving a member behind."""
    answers = [
        mallory.api.post(MEMBERS, person("viewer", email=email, initial_password="1"), format="json")
        for email in (acme.user.email, "nobody@acme.example")
    ]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].content == answers[1].content
    assert not Membership.objects.filter(organization_id=mallory.id, user_id=acme.user.id).exists()
