"""The cast at the portal's door: browsers that are signed in, and a day for the pages to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
import time_machine
from django.test import Client

from marketplace.accounts.models import Membership, User
from marketplace.accounts.services import SYSTEM, add_member, create_user
from pricing.models import Grade
from tests.cast import PASSWORD, Party
from tests.portal.world import HOUR, HOURS_BEHIND, Day, make_day

SignIn = Callable[[Party], Client]


@pytest.fixture
def clock_at(now: datetime) -> Iterator[datetime]:
    """The wall clock stands three hours and a bit past the fixed moment: an auction is open, its gate not closed."""
    at = now + HOURS_BEHIND * HOUR + timedelta(minutes=2)
    with time_machine.travel(at, tick=False):
        yield at


@pytest.fixture
def day(acme: Party, hyperion: Party, grade: Grade, clock_at: datetime) -> Day:
    return make_day(acme, hyperion, grade, now=clock_at)


@pytest.fixture
def sign_in() -> SignIn:
    def signed_in(party: Party) -> Client:
        client = Client()
        assert client.login(username=party.user.email, password=PASSWORD)
        return client

    return signed_in


@pytest.fixture
def viewer_of(now: datetime) -> Callable[[Party], Client]:
    """A person who may read an organization, not change it."""

    def made(party: Party) -> Client:
        email = f"viewer@{party.organization.name.lower()}.example"
        user: User = create_user(email=email, password=PASSWORD, name="Vi", now=now)
        add_member(
            organization_id=party.id, user_id=user.id, role=Membership.Role.VIEWER, now=now, actor=SYSTEM
        )
        client = Client()
        assert client.login(username=email, password=PASSWORD)
        return client

    return made
