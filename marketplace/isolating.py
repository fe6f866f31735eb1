"""Work on many items of which one may fail: the others go on, and it is written down and waits for its turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import QuerySet

from marketplace.ids import uuid7
from marketplace.models import FailingItem

logger = logging.getLogger(__name__)

# As often at once as a passing cause may need; then ever more rarely, so that a poisoned item costs next to nothing.
TRIES: Final = 5
_FIRST_PAUSE_S: Final = 60
_LONGEST_PAUSE_S: Final = 3_600
# What is still due has been tried since, many times: it was settled, paid or voided otherwise.
_FORGOTTEN: Final = timedelta(days=2)
T = TypeVar("T")

_RECORD: Final = """
INSERT INTO marketplace_failingitem AS item (
    id, job, item, attempts, first_failed_at, last_failed_at, next_attempt_at, error
)
VALUES (%(id)s, %(job)s, %(item)s, 1, %(now)s, %(now)s, %(now)s, %(error)s)
ON CONFLICT ON CONSTRAINT marketplace_failingitem_one_per_item DO UPDATE
    SET attempts = item.attempts + 1, last_failed_at = excluded.last_failed_at, error = excluded.error,
        next_attempt_at = excluded.last_failed_at + CASE
            WHEN item.attempts + 1 < %(tries)s THEN interval '0'
            ELSE interval '1 second'
                * LEAST(%(longest_s)s, %(pause_s)s * power(2, LEAST(10, item.attempts + 1 - %(tries)s)))
        END
RETURNING attempts
"""


def for_each(
    job: str,
    items: Iterable[T],
    do: Callable[[T], object],
    *,
    key: Callable[[T], UUID | str],
    now: datetime,
    strict: bool = False,
) -> None:
    """`do` each of them. One that raises is recorded under its key with the reason, and the others are done.

    It is tried again at the next call, after five failures in a row more and more rarely, at least once an hour, and
    never given up: what it stands for is owed. `do` must leave nothing behind when it raises (a transaction of its
    own). Only a database that has gone ends the loop: nothing could be done, and nobody is to blame. `strict` raises
    what fails instead: for a caller who writes it down himself.
    """
    if strict:
        for item in items:
            do(item)
        return
    FailingItem.objects.filter(job=job, last_failed_at__lt=now - _FORGOTTEN).delete()
    failing = dict(FailingItem.objects.filter(job=job).values_list("item", "next_attempt_at"))
    for item in items:
        name = str(key(item))
        if name in failing and failing[name] > now:
            continue
        try:
            do(item)
        except Exception as error:
            if isinstance(error, (OperationalError, InterfaceError)) and not _database_answers():
                raise
            attempts = _record(job, name, error, now)
            logger.exception(
                "one item failed, the others go on", extra={"job": job, "item": name, "attempts": attempts}
            )
            continue
        if name in failing:
            FailingItem.objects.filter(job=job, item=name).delete()


def isolated(job: str, do: Callable[[], object], *, now: datetime, strict: bool = False) -> None:
    """One step of several that do not depend on each other, as the only item of its job."""
    for_each(job, [do], lambda step: step(), key=lambda _: "all", now=now, strict=strict)


def failing_keys(job: str) -> set[str]:
    """Who failed at the last try: what works on many together leaves them to `for_each`."""
    return set(FailingItem.objects.filter(job=job).values_list("item", flat=True))


def items_left_to_people() -> QuerySet[FailingItem]:
    """What failed five times in a row and more: somebody has to look."""
    return FailingItem.objects.filter(attempts__gte=TRIES)


@transaction.atomic
def _record(job: str, item: str, error: Exception, now: datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            _RECORD,
            {
                "id": uuid7(now),
                "job": job,
                "item": item,
                "now": now,
                "error": f"{type(error).__name__}: {error}"[:500],
                "tries": TRIES,
                "pause_s": _FIRST_PAUSE_S,
                "longest_s": _LONGEST_PAUSE_S,
            },
        )
        return int(cursor.fetchone()[0])


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (OperationalError, InterfaceError):
        return False
    return True
