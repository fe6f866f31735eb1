"""The HTTP client under Stripe's SDK: each request is counted, and a call ends when its time is over, however it drips.

The SDK's timeout is that of each read of the socket, so an answer that comes byte by byte never runs into it. Here a
timer shuts the socket down, which ends whatever waits for it. Connections are pooled as ever.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import requests
import stripe
import urllib3
from requests.adapters import HTTPAdapter

from marketplace.billing.processors.base import spend_call

# To reach a host; what is left of a call's time is for its answer.
_CONNECT_S: Final = 5.0
_here = threading.local()


class _Deadline:
    """When a request must have ended; `fire` breaks the connection it is on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_over = False
        self._twin: socket.socket | None = None
        self._orphans: list[socket.socket] = []

    def watch(self, twin: socket.socket | None) -> None:
        with self._lock:
            self._twin = twin
        if self.is_over:
            self.fire()

    def keep(self, twin: socket.socket) -> bool:
        """Whether the answer may still come on it: then it is closed at the end. A connection that is to be closed is
        let go of as soon as the head of its answer is read."""
        if twin is not self._twin:
            return False
        self._orphans.append(twin)
        return True

    def end(self) -> None:
        with self._lock:
            self._twin = None
        for twin in self._orphans:
            twin.close()

    def fire(self) -> None:
        with self._lock:
            self.is_over = True
            if self._twin is not None:
                with contextlib.suppress(OSError):  # The other side was quicker.
                    self._twin.shutdown(socket.SHUT_RDWR)


class _Watched:
    """A connection with a second handle on its socket: the first is the reading thread's, through TLS or not."""

    twin: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        self.twin = made.dup()
        _watch(self.twin)
        return made

    def request(self, *args: Any, **options: Any) -> None:
        _watch(self.twin)
        super().request(*args, **options)  # type: ignore[misc]

    def close(self) -> None:
        twin, self.twin = self.twin, None
        deadline: _Deadline | None = getattr(_here, "deadline", None)
        if twin is not None and not (deadline is not None and deadline.keep(twin)):
            twin.close()
        super().close()  # type: ignore[misc]


def _watch(twin: socket.socket | None) -> None:
    deadline: _Deadline | None = getattr(_here, "deadline", None)
    if deadline is not None:
        deadline.watch(twin)


class _HttpConnection(_Watched, urllib3.connection.HTTPConnection):
    pass


class _HttpsConnection(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


_POOLS: Final = {"http": _HttpPool, "https": _HttpsPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager


def _not_made(why: str) -> Exception:
    made: Exception = stripe.APIConnectionError(why)  # type: ignore[no-untyped-call]
    return made


class BoundedClient(stripe.RequestsClient):
    """Each request lasts `timeout_s` at most, and all within `whole` together as long."""

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__(timeout=(min(_CONNECT_S, timeout_s), timeout_s))
        self._timeout_s = timeout_s

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What is asked inside is one call, also where it takes several requests."""
        _here.until = time.monotonic() + self._timeout_s
        try:
            yield
        finally:
            _here.until = None

    def request(self, method: str, url: str, headers: Any, post_data: Any = None, **options: Any) -> Any:
        if not spend_call():
            raise _not_made("no budget for this request in time")
        until = getattr(_here, "until", None)
        left_s = self._timeout_s if until is None else until - time.monotonic()
        if left_s <= 0:
            raise _not_made("the time of this call is over")
        if getattr(self._thread_local, "session", None) is None:
            session = requests.Session()
            session.mount("http://", _Adapter())
            session.mount("https://", _Adapter())
            self._thread_local.session = session
        deadline = _here.deadline = _Deadline()
        timer = threading.Timer(left_s, deadline.fire)
        timer.daemon = True
        timer.start()
        try:
            answer = super().request(method, url, headers, post_data, **options)
            if deadline.is_over:
                # Cut off where no length was announced, it would look whole.
                raise _not_made("the time of this call is over")
            return answer
        finally:
            timer.cancel()
            _here.deadline = None
            deadline.end()
