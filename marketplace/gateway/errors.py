"""What a caller is told, in OpenAI's form, so that the official client raises its usual exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import psycopg
from psycopg_pool import PoolTimeout

JSON_TYPE: Final = b"application/json"
# The books cannot be written now: no answer, a full disk, a standby. It may pass.
BOOKS_AWAY: Final = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, PoolTimeout)


class ApiError(Exception):
    """A request that is refused or failed: HTTP status, OpenAI's `type` and `code`, and the parameter at fault."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.kind = kind
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        return msgspec.json.encode(self.body())


def invalid(param: str | None, message: str, *, code: str = "invalid_value") -> ApiError:
    """400: the request itself is at fault; `param` names where."""
    return ApiError(400, code, message, param=param)


def upstream_failed(message: str = "The host that served this request failed.") -> ApiError:
    return ApiError(502, "upstream_failed", message, kind="server_error")


def timed_out() -> ApiError:
    return ApiError(504, "timeout", "The request took longer than its grade allows.", kind="server_error")


def unavailable(message: str, *, retry_after_s: int = 1) -> ApiError:
    return ApiError(
        503, "service_unavailable", message, kind="server_error", headers={"retry-after": str(retry_after_s)}
    )
