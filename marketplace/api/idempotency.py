"""`@idempotent`: a POST that moves money or sells capacity happens once per (organization, Idempotency-Key).

The record is claimed in a transaction of its own; then the effect and the answer commit together, so that a crash at
any instant leaves either nothing or both. Services derive their ids from `operation_id`, the record's id, which a
retry after a crash finds again.

Kept answers: every success, and every domain problem that is a fact about the request (402, 409, 422 ...). Not kept:
malformed requests and problems that say when to come back (Retry-After); those changed nothing and free the key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

from django.db import DatabaseError, OperationalError, transaction
from django.db.models import F
from django.http import Http404, HttpResponse
from rest_framework import exceptions
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.api.errors import (
    PROBLEM_TYPE,
    IdempotencyInProgress,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
)
from marketplace.api.models import IdempotencyRecord
from marketplace.api.views import ApiView
from marketplace.errors import DomainError, sqlstate_of

HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"
# How long a request may hold its key before another may take it over. The wall clock, not the market's: a lease is
# about processes, and the market's time may be moved.
LEASE: Final = timedelta(seconds=60)
_TRIES: Final = 4
_TRY_AGAIN: Final = ("40P01", "40001")  # deadlock_detected, serialization_failure

Handler = TypeVar("Handler", bound=Callable[..., Any])


def idempotent(handler: Handler) -> Handler:
    """For a `post` of an ApiView. Inside, `request.operation_id` (and `self.operation_id`) is set."""
    return _once(handler, _perform)


def idempotent_in_phases(handler: Handler) -> Handler:
    """As `idempotent`, for a `post` that waits for somebody else's machine: no transaction is open around it.

    Its service commits in phases and finds its own traces by `operation_id`: a retry after a crash goes on from there.
    """
    return _once(handler, _perform_in_phases)


def _once(
    handler: Handler, perform: Callable[[IdempotencyRecord, Callable[[], Response]], HttpResponse]
) -> Handler:

    @functools.wraps(handler)
    def wrapper(view: ApiView, request: Request, *args: Any, **kwargs: Any) -> HttpResponse:
        record = _claim(view, request)
        if record.response_status is not None:
            return _answer(record, replayed=True)
        setattr(request, "operation_id", record.id)  # noqa: B010  (a name that Request does not declare)
        try:
            return _run_again_on_deadlock(
                lambda: perform(record, lambda: handler(view, request, *args, **kwargs))
            )
        except DomainError as error:
            if error.retry_after_s is not None:
                _free(record)
                raise
            return _keep_problem(record, view.handle_exception(error))
        except (exceptions.APIException, Http404):
            _free(record)
            raise
        except Exception:
            # Nobody knows how far it came beyond the database; the retry goes on under the same operation id.
            _unlock(record)
            raise

    wrapper.is_idempotent = True  # type: ignore[attr-defined]
    return cast(Handler, wrapper)


def _claim(view: ApiView, request: Request) -> IdempotencyRecord:
    """The caller's own record, or a finished one. Raises when the key is absent, in use, or another request's."""
    key = request.headers.get(HEADER)
    if key is None:
        raise IdempotencyKeyMissing(f"the header {HEADER} is required here", field=HEADER)
    if not 1 <= len(key) <= 255 or not all("!" <= character <= "~" for character in key):
        detail = f"{HEADER} must be 1 to 255 printable ASCII characters without spaces"
        raise IdempotencyKeyInvalid(detail, field=HEADER)
    method_path = f"{request.method} {request.path}"[:300]
    canonical = json.dumps(request.data, sort_keys=True, separators=(",", ":"))
    body_sha256 = hashlib.sha256(canonical.encode()).digest()
    wall_now = clock.wall_now()
    with transaction.atomic():
        record, created = IdempotencyRecord.objects.get_or_create(
            organization_id=view.organization_id,
            key=key,
            defaults={
                "method_path": method_path,
                "body_sha256": body_sha256,
                "created_at": clock.now(),
                "locked_until": wall_now + LEASE,
            },
        )
        if created:
            return record
        if record.method_path != method_path or bytes(record.body_sha256) != body_sha256:
            raise IdempotencyKeyReused(f"this {HEADER} belongs to another request", field=HEADER)
        if record.response_status is not None:
            return record
        expired = IdempotencyRecord.objects.filter(
            pk=record.pk, locked_until=record.locked_until, locked_until__lte=wall_now
        )
        if not expired.update(locked_until=wall_now + LEASE):
            detail = "a request with this key is being worked on"
            raise IdempotencyInProgress(detail, field=HEADER, retry_after_s=1)
        record.locked_until = wall_now + LEASE
        return record


def _perform(record: IdempotencyRecord, handler: Callable[[], Response]) -> HttpResponse:
    """Effect and answer in one transaction."""
    with transaction.atomic():
        # Somebody slower than his lease may still be at it: wait for him, then see what he left.
        locked = IdempotencyRecord.objects.select_for_update().filter(pk=record.pk).first()
        if locked is None:
            raise IdempotencyInProgress(
                "the request before this one was undone", field=HEADER, retry_after_s=1
            )
        if locked.response_status is not None:
            return _answer(locked, replayed=True)
        return _keep(locked, handler(), "application/json")


def _perform_in_phases(record: IdempotencyRecord, handler: Callable[[], Response]) -> HttpResponse:
    """The effect's own transactions, then one for the answer. Whoever was faster than this one is believed."""
    response = handler()
    with transaction.atomic():
        locked = IdempotencyRecord.objects.select_for_update().filter(pk=record.pk).first()
        if locked is None:
            raise IdempotencyInProgress(
                "the request before this one was undone", field=HEADER, retry_after_s=1
            )
        if locked.response_status is not None:
            return _answer(locked, replayed=True)
        return _keep(locked, response, "application/json")


def _keep_problem(record: IdempotencyRecord, response: Response) -> HttpResponse:
    with transaction.atomic():
        locked = IdempotencyRecord.objects.select_for_update().filter(pk=record.pk).first()
        if locked is None or locked.response_status is not None:
            return _answer(locked, replayed=True) if locked else _rendered(response, PROBLEM_TYPE)
        return _keep(locked, response, PROBLEM_TYPE)


def _keep(record: IdempotencyRecord, response: Response, content_type: str) -> HttpResponse:
    assert response.status_code < 500, "a failure is raised, not returned"
    record.response_status = response.status_code
    record.response_body = JSONRenderer().render(response.data)
    record.response_content_type = content_type
    record.save(update_fields=["response_status", "response_body", "response_content_type"])
    return _answer(record, replayed=False)


def _rendered(response: Response, content_type: str) -> HttpResponse:
    body = JSONRenderer().render(response.data)
    return HttpResponse(body, status=response.status_code, content_type=content_type)


def _answer(record: IdempotencyRecord, *, replayed: bool) -> HttpResponse:
    assert record.response_status is not None
    assert record.response_body is not None
    answer = HttpResponse(
        bytes(record.response_body),
        status=record.response_status,
        content_type=record.response_content_type,
    )
    if replayed:
        answer[REPLAYED_HEADER] = "true"
    return answer


def _free(record: IdempotencyRecord) -> None:
    """Nothing was done: the key may be used again, also for a corrected body."""
    IdempotencyRecord.objects.filter(
        pk=record.pk, response_status__isnull=True, locked_until=record.locked_until
    ).delete()


def _unlock(record: IdempotencyRecord) -> None:
    try:
        IdempotencyRecord.objects.filter(
            pk=record.pk, response_status__isnull=True, locked_until=record.locked_until
        ).update(locked_until=F("created_at"))
    except DatabaseError:
        return  # The lease will run out by itself.


def _run_again_on_deadlock(work: Callable[[], HttpResponse]) -> HttpResponse:
    for attempt in range(1, _TRIES + 1):
        try:
            return work()
        except OperationalError as error:
            if attempt == _TRIES or sqlstate_of(error) not in _TRY_AGAIN:
                raise
            time.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise AssertionError("unreachable")
