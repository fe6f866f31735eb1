from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from django.db import connection

from marketplace.jobs import claim_job, finish_job
from marketplace.models import JobRun
from tests.conftest import TestDatabase

LEASE = timedelta(minutes=1)


@pytest.mark.django_db
def test_a_period_is_claimed_once_and_the_next_period_again(now: datetime) -> None:
    assert claim_job(job="settle", period_start=now, now=now)
    assert not claim_job(job="settle", period_start=now, now=now)
    assert claim_job(job="settle", period_start=now + timedelta(hours=1), now=now)
    assert claim_job(job="invoice", period_start=now, now=now)


@pytest.mark.django_db
def test_a_dead_claimers_period_is_taken_over_after_its_lease(now: datetime) -> None:
    assert claim_job(job="settle", period_start=now, now=now, lease=LEASE)
    assert not claim_job(job="settle", period_start=now, now=now + LEASE, lease=LEASE)
    assert claim_job(job="settle", period_start=now, now=now + LEASE + timedelta(seconds=1), lease=LEASE)
    assert JobRun.objects.get().attempts == 2


@pytest.mark.django_db
def test_a_finished_period_is_never_claimed_again(now: datetime) -> None:
    assert not finish_job(job="settle", period_start=now, now=now)
    claim_job(job="settle", period_start=now, now=now, lease=LEASE)
    assert finish_job(job="settle", period_start=now, now=now)
    assert not finish_job(job="settle", period_start=now, now=now)
    assert not claim_job(job="settle", period_start=now, now=now + timedelta(days=1))


def test_of_ten_claimers_at_once_one_works(committed_db: TestDatabase, now: datetime) -> None:
    def claim(_: int) -> bool:
        try:
            return claim_job(job="settle", period_start=now, now=now)
        finally:
            connection.close()

    with ThreadPoolExecutor(10) as pool:
        assert sorted(pool.map(claim, range(10))) == [False] * 9 + [True]
