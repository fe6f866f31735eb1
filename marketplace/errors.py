"""The base of every domain exception: what the outside world is told, once, in one form."""

from __future__ import annotations

from typing import ClassVar


class DomainError(Exception):
    """A request that cannot be done, stated as a fact. Nothing was changed.

    `code` is the stable machine word, `http_status` its status, `field` the input at fault if there is one.
    """

    code: ClassVar[str] = "invalid"
    http_status: ClassVar[int] = 422
    title: ClassVar[str] = "The request cannot be processed"

    def __init__(self, detail: str, *, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s


class NotFound(DomainError):
    """It does not exist, or not for this organization: the two are not told apart."""

    code = "not_found"
    http_status = 404
    title = "Not found"


class Conflict(DomainError):
    """It exists already with other terms, or its state does not allow this."""

    code = "conflict"
    http_status = 409
    title = "Conflict"


class InvalidInput(DomainError):
    """A value that is well-formed but not acceptable; `field` names it."""

    code = "invalid_input"
    title = "Invalid input"


class Forbidden(DomainError):
    """The caller is known but may not do this."""

    code = "forbidden"
    http_status = 403
    title = "Not allowed"


def constraint_of(error: Exception) -> str:
    """The name of the database constraint that refused the write; empty when the error names none."""
    diagnostics = getattr(error.__cause__, "diag", None) or getattr(error, "diag", None)
    return str(getattr(diagnostics, "constraint_name", None) or "")


def sqlstate_of(error: Exception) -> str:
    """PostgreSQL's five-letter code of a failed statement, also the ones our SQL functions raise (TY...)."""
    return str(getattr(error.__cause__, "sqlstate", None) or getattr(error, "sqlstate", None) or "")
