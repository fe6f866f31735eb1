"""The agent's HTTP face: takes the gateway's requests to the engine and the answer back, metered.

An attempt's event is durable before the gateway gets the end of the answer, so a killed agent has lost
nothing that was answered completely.
"""

import asyncio
import logging

import aiohttp
import msgspec
from aiohttp import hdrs, web

from metering.usage import Finish, Flag
from providers.agent.admission import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    EngineRequest,
    Gatekeeper,
    Refused,
    engine_request,
)
from providers.agent.clock import AgentClock
from providers.agent.config import Config
from providers.agent.engines import Engine
from providers.agent.meter import AttemptMeter
from providers.agent.spool import Spool
from providers.wire import (
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    DeliveryKey,
    WireError,
    allowed_headers,
    encode_sse,
)

logger = logging.getLogger(__name__)

_END_MARK = b"data: [DONE]"
_NOT_SENT_BY_US = (hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT)


class Serving:
    """State and handlers of the HTTP face. `engine` is set when the engine has been detected."""

    def __init__(
        self,
        *,
        config: Config,
        http: aiohttp.ClientSession,
        spool: Spool,
        gatekeeper: Gatekeeper,
        clock: AgentClock,
    ) -> None:
        self._config = config
        self._clock = clock
        self._http = http
        self._spool = spool
        self._gatekeeper = gatekeeper
        self.engine: Engine | None = None
        self.engine_answers = False
        self.draining = False
        self.in_flight = 0

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return (
            self.engine is not None
            and self.engine_answers
            and not self.draining
            and self._spool.failed is None
            and bool(self._gatekeeper.offering_ids)
        )

    def application(self) -> web.Application:
        application = web.Application(client_max_size=self._config.max_body_bytes)
        for path in (CHAT, COMPLETIONS, EMBEDDINGS):
            application.router.add_post(path, self.complete)
        application.router.add_get("/healthz", self.health)
        return application

    async def health(self, request: web.Request) -> web.Response:
        status = {"ready": self.ready, "in_flight": self.in_flight, "draining": self.draining}
        return web.json_response(status, status=200 if self.ready else 503)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """One attempt, from delivery key to usage event."""
        engine = self.engine
        try:
            if engine is None or self.draining or self._spool.failed is not None:
                raise Refused(503, "host_not_ready", "this host does not serve at the moment")
            key = self._gatekeeper.admit(request.headers.get(hdrs.AUTHORIZATION), now=self._clock.now())
            body = await request.read()
            asked = engine_request(request.path, body, key=key, engine=engine)
        except Refused as refusal:
            return _error(refusal.status, refusal.code, refusal.message, param=refusal.param)
        except web.HTTPRequestEntityTooLarge:
            most = self._config.max_body_bytes
            return _error(413, "body_too_large", f"body: larger than {most} bytes", param="body")
        meter = AttemptMeter(
            key=key,
            usage_source=engine.usage_source,
            bytes_in=len(body),
            monotonic=self._clock.monotonic,
        )
        self.in_flight += 1
        try:
            return await self._attempt(request, asked, key, meter)
        finally:
            self.in_flight -= 1

    async def _attempt(
        self, request: web.Request, asked: EngineRequest, key: DeliveryKey, meter: AttemptMeter
    ) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(self._config.max_request_s):
                upstream = await self._open(request, asked)
                try:
                    if upstream.status != 200 or not asked.stream:
                        return await self._answer_whole(upstream, meter)
                    response = web.StreamResponse(headers=_response_headers(upstream))
                    await response.prepare(request)
                    await self._pass_stream(upstream, response, meter)
                    await response.write_eof()
                    return response
                finally:
                    if upstream.content.at_eof():
                        upstream.release()
                    else:
                        upstream.close()  # Hanging up is what stops the engine.
        except asyncio.CancelledError:
            self._record_gone(meter)
            raise
        except ConnectionResetError:
            if response is None:
                return await self._fail(meter, key, response, "the engine hung up", Finish.ERROR)
            self._record_gone(meter)
            return response
        except TimeoutError:
            return await self._fail(meter, key, response, "the request took too long", Finish.TIMEOUT)
        except (aiohttp.ClientError, WireError, OSError) as error:
            return await self._fail(
                meter, key, response, f"the engine failed ({type(error).__name__})", Finish.ERROR
            )

    async def _open(self, request: web.Request, asked: EngineRequest) -> aiohttp.ClientResponse:
        """The engine's answer, headers read. A kept connection that the engine had just closed is replaced once."""
        url = self._config.engine_url.rstrip("/") + request.path
        headers = self._engine_headers(request)
        for last_try in (False, True):
            try:
                return await self._http.post(
                    url,
                    data=asked.body,
                    headers=headers,
                    skip_auto_headers=_NOT_SENT_BY_US,
                    allow_redirects=False,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if last_try or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        raise AssertionError("unreachable")

    async def _pass_stream(
        self, upstream: aiohttp.ClientResponse, response: web.StreamResponse, meter: AttemptMeter
    ) -> None:
        """Chunk by chunk, untouched. What comes from the end mark on waits until the event is durable."""
        async for chunk in upstream.content.iter_any():
            if not meter.feed_stream(chunk):
                await response.write(chunk)
                continue
            end = max(chunk.rfind(_END_MARK), 0)
            if end:
                await response.write(chunk[:end])
            await self._record(meter)
            await response.write(chunk[end:])
        await self._record(meter)

    async def _answer_whole(self, upstream: aiohttp.ClientResponse, meter: AttemptMeter) -> web.Response:
        answer = await upstream.read()
        meter.feed_answer(answer)
        if upstream.status == 200:
            await self._record(meter)
        else:
            await self._record(meter, Finish.ERROR, Flag.UPSTREAM_FAILED)
        return web.Response(status=upstream.status, body=answer, headers=_response_headers(upstream))

    async def _fail(
        self,
        meter: AttemptMeter,
        key: DeliveryKey,
        response: web.StreamResponse | None,
        reason: str,
        finish: Finish,
    ) -> web.StreamResponse:
        """Says so to the gateway: with a status if nothing was sent, else as the stream's last event without
        end mark.
        """
        logger.warning("attempt failed", extra={"request_id": key.request_id, "reason": reason})
        await self._record(meter, finish, Flag.UPSTREAM_FAILED)
        code = "engine_timeout" if finish is Finish.TIMEOUT else "engine_failed"
        if response is None:
            return _error(504 if finish is Finish.TIMEOUT else 502, code, reason)
        try:
            await response.write(encode_sse(_error_body(code, reason, None)))
            await response.write_eof()
        except ConnectionResetError:
            pass  # The gateway has gone, too.
        return response

    async def _record(self, meter: AttemptMeter, finish: Finish | None = None, *flags: Flag) -> None:
        """Returns when the attempt's one event is durable."""
        if not meter.recorded:
            meter.recorded = True
            await asyncio.wrap_future(self._spool.append(meter.event(finish=finish, flags=flags)))

    def _record_gone(self, meter: AttemptMeter) -> None:
        """Nobody waits for an answer any more: the spool's thread stores the event, cancelled or not."""
        if not meter.recorded:
            meter.recorded = True
            self._spool.append(meter.event(finish=Finish.CLIENT_GONE, flags=(Flag.CLIENT_GONE,)))

    def _engine_headers(self, request: web.Request) -> dict[str, str]:
        headers = allowed_headers(request.headers.items(), allowed=REQUEST_HEADERS)
        headers.setdefault("content-type", "application/json")
        if self._config.engine_api_key:
            headers["authorization"] = f"Bearer {self._config.engine_api_key}"
        return headers


def _response_headers(upstream: aiohttp.ClientResponse) -> dict[str, str]:
    return allowed_headers(upstream.headers.items(), allowed=RESPONSE_HEADERS)


def _error_body(code: str, message: str, param: str | None) -> bytes:
    kind = "invalid_request_error" if param else "host_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _error(status: int, code: str, message: str, *, param: str | None = None) -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    body = _error_body(code, message, param)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
