"""Every failure as one form: `application/problem+json` (RFC 9457), with the field that is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import DataError, OperationalError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from marketplace.errors import DomainError, sqlstate_of

PROBLEM_TYPE: Final = "application/problem+json"
_RETRY_AFTER_S: Final = 2
_OUT_OF_RANGE: Final = "22003"
_READ_ONLY: Final = "25006"


class IdempotencyKeyMissing(DomainError):
    """Nothing that moves money or sells capacity is done without a key that makes a retry safe."""

    code = "idempotency_key_missing"
    http_status = 400
    title = "A header is missing"


class IdempotencyKeyInvalid(DomainError):
    code = "idempotency_key_invalid"
    http_status = 400
    title = "A header is not acceptable"


class IdempotencyKeyReused(DomainError):
    """The key was used for another request; that one is untouched."""

    code = "idempotency_key_reused"


class IdempotencyInProgress(DomainError):
    """The same request is being worked on right now."""

    code = "idempotency_in_progress"
    http_status = 409
    title = "In progress"


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's hook. None for a programmer's error: that one is logged and answered by Django as a 500."""
    set_rollback()
    problem, headers = _problem_of(error)
    if problem is None:
        return None
    response = Response(problem, status=problem["status"], headers=headers, content_type=PROBLEM_TYPE)
    response.exception = True
    return response


def problem(
    *, status: int, code: str, title: str, detail: str, errors: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    """The document; `field` is that of the first error, empty when no single input is at fault."""
    errors = errors or []
    return {
        "type": f"urn:tokenyard:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "field": errors[0]["field"] if errors else "",
        "errors": errors,
    }


def _problem_of(error: Exception) -> tuple[dict[str, Any] | None, dict[str, str]]:
    if isinstance(error, DomainError):
        return _domain_problem(error)
    if isinstance(error, exceptions.ValidationError):
        errors = list(_field_errors(error.get_full_details(), ""))
        first = errors[0]
        detail = f"{first['field']}: {first['detail']}" if first["field"] else first["detail"]
        title = "The request cannot be processed"
        return problem(status=422, code="invalid_input", title=title, detail=detail, errors=errors), {}
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    elif isinstance(error, RequestDataTooBig):
        return problem(
            status=413, code="body_too_large", title="Content too large", detail="The body is too large."
        ), {}
    if isinstance(error, exceptions.APIException):
        return _framework_problem(error)
    if isinstance(error, DataError) and sqlstate_of(error) == _OUT_OF_RANGE:
        # A sum left the 64 bits of a column. The statement was refused as a whole.
        detail = "an amount is too large"
        return problem(status=422, code="out_of_range", title="Out of range", detail=detail), {}
    # A full disk and a lost connection are the first; a standby, or a server that was set read-only, the second.
    if isinstance(error, OperationalError) or sqlstate_of(error) == _READ_ONLY:
        detail = "The database cannot be reached or does not accept writes; nothing was changed. Try again."
        headers = {"Retry-After": str(_RETRY_AFTER_S)}
        return problem(status=503, code="unavailable", title="Unavailable", detail=detail), headers
    return None, {}


def _domain_problem(error: DomainError) -> tuple[dict[str, Any], dict[str, str]]:
    errors = [{"field": error.field, "code": error.code, "detail": error.detail}] if error.field else []
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    document = problem(
        status=error.http_status, code=error.code, title=error.title, detail=error.detail, errors=errors
    )
    return document, headers


def _framework_problem(error: exceptions.APIException) -> tuple[dict[str, Any], dict[str, str]]:
    headers = {}
    challenge = getattr(error, "auth_header", None)
    if challenge:
        headers["WWW-Authenticate"] = challenge
    wait = getattr(error, "wait", None)
    if wait:
        headers["Retry-After"] = str(int(wait))
    code = error.get_codes()
    document = problem(
        status=error.status_code,
        code=code if isinstance(code, str) else str(error.default_code),
        title=HTTPStatus(error.status_code).phrase,
        detail=str(error.detail),
    )
    return document, headers


def _field_errors(details: Any, path: str) -> Iterator[dict[str, str]]:
    """DRF's nested details as a flat list with paths like `steps.0.quantity_lots`."""
    if isinstance(details, dict) and {"message", "code"} == set(details):
        yield {"field": path, "code": str(details["code"]), "detail": str(details["message"])}
    elif isinstance(details, dict):
        for name, inner in details.items():
            step = "" if name == "non_field_errors" else str(name)
            yield from _field_errors(inner, ".".join(filter(None, (path, step))))
    else:
        for index, inner in enumerate(details):
            is_leaf = isinstance(inner, dict) and {"message", "code"} == set(inner)
            # A list of errors of one field, or (DRF) a list with one entry, empty or not, per element.
            yield from _field_errors(inner, path if is_leaf else f"{path}.{index}".lstrip("."))
