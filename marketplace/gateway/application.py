"""The gateway's ASGI application: routes, keys, errors. No Django handler, middleware or ORM is on a request's way."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any, Final
from urllib.parse import unquote
from uuid import UUID

import msgspec
import psycopg
from django.db import connections
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from psycopg_pool import PoolTimeout, TooManyRequests

from marketplace.clock import now as market_now
from marketplace.gateway import metrics, upstream
from marketplace.gateway.config import Config, read_config
from marketplace.gateway.delivery import Delivery, Means
from marketplace.gateway.errors import BOOKS_AWAY, ApiError, invalid, unavailable
from marketplace.gateway.exchange import ClientGone, Exchange, Receive, Scope, Send
from marketplace.gateway.parsing import CHAT, COMPLETIONS, EMBEDDINGS, parse_request
from marketplace.gateway.refusals import CONTRACT_HEADER
from marketplace.gateway.store import Caller, Model, Store
from metering.services import gateway_source
from pricing.rating import plain_prices
from pricing.tokenizers import reference_encoding
from pricing.units import decimal_string

logger = logging.getLogger(__name__)

GENERATING: Final = frozenset({CHAT, COMPLETIONS, EMBEDDINGS})
MODELS: Final = "/v1/models"
_SHOWN_PATHS: Final = GENERATING | {MODELS}
_PROBE_TIMEOUT_S: Final = 2


class Application:
    """One per process; opened and closed by the server's lifespan."""

    def __init__(self) -> None:
        self._means: Means | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return  # No web sockets here: the server closes the connection.
        exchange = Exchange(scope, receive, send)
        metrics.IN_FLIGHT.inc()
        try:
            await self._answer(exchange)
        finally:
            metrics.IN_FLIGHT.dec()
            exchange.close()
            path = exchange.path if exchange.path in _SHOWN_PATHS else "other"
            metrics.REQUESTS.labels(path, str(exchange.status or 499)).inc()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.open(read_config())
        except Exception as error:
            logger.exception("the gateway cannot start")
            await send({"type": "lifespan.startup.failed", "message": f"the gateway cannot start: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def open(self, config: Config) -> None:
        """Connects. Raises when the database does not answer within half a minute."""
        store = Store(config)
        await store.open()
        source_id = await asyncio.to_thread(_source_id)
        # Now, or the first answer would wait a second for the vocabulary.
        reference_encoding()
        self._means = Means(config, store, upstream.open_client(config), source_id)
        # What was loaded so far stays for good: the collector need not walk it while requests wait.
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        if self._means is not None:
            await self._means.client.close()
            await self._means.store.close()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._route(exchange)
        except ClientGone:
            pass
        except ApiError as error:
            await self._refuse(exchange, error)
        except (*BOOKS_AWAY, TooManyRequests):
            logger.exception("the database does not answer")
            await self._refuse(exchange, unavailable("The market's books do not answer. Retry shortly."))
        except Exception:
            logger.exception("request failed", extra={"path": exchange.path[:80]})
            failure = ApiError(500, "internal_error", "The gateway failed.", kind="server_error")
            await self._refuse(exchange, failure)

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        if not exchange.started:
            await exchange.answer(error.status, error.encoded(), error.headers)
        else:
            await exchange.write(b"data: " + error.encoded() + b"\n\n", more=False)

    async def _route(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.method
        if path in GENERATING:
            _only(exchange, "POST")
            await self._generate(exchange)
        elif path == MODELS or path.startswith(f"{MODELS}/"):
            _only(exchange, "GET")
            await self._show_models(exchange)
        elif path == "/healthz" and method == "GET":
            await exchange.answer(200, b'{"status":"ok"}')
        elif path == "/readyz" and method == "GET":
            await self._show_readiness(exchange)
        elif path == "/metrics" and method == "GET":
            await exchange.answer(200, generate_latest(REGISTRY), {"content-type": CONTENT_TYPE_LATEST})
        else:
            raise ApiError(404, "unknown_url", f"Unknown request URL: {method} {path[:100]}.")

    async def _generate(self, exchange: Exchange) -> None:
        means = self._ready()
        caller = await self._authenticate(exchange, means)
        raw = await exchange.read_body()
        asked = parse_request(exchange.path, raw)
        model = (await means.store.models()).get(asked.model)
        if model is None:
            raise _unknown_model(asked.model)
        delivery = Delivery(
            means,
            exchange,
            caller=caller,
            asked=asked,
            model=model,
            contract_id=_named_contract(exchange) or caller.default_contract_id,
            bytes_in=len(raw),
            occurred_at=await means.store.now(),
        )
        await delivery.serve()

    async def _authenticate(self, exchange: Exchange, means: Means) -> Caller:
        scheme, _, presented = exchange.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise _unauthenticated("You did not provide an API key: send 'Authorization: Bearer YOUR_KEY'.")
        caller = await means.store.caller(presented.strip())
        if caller is None:
            raise _unauthenticated("Incorrect API key provided.")
        if "inference" not in caller.scopes:
            message = "This API key lacks the scope 'inference'."
            raise ApiError(403, "insufficient_scope", message, kind="permission_error")
        return caller

    async def _show_models(self, exchange: Exchange) -> None:
        means = self._ready()
        await self._authenticate(exchange, means)
        models = await means.store.models()
        name = unquote(exchange.path[len(MODELS) + 1 :])
        if name:
            if name not in models:
                raise _unknown_model(name)
            await exchange.answer(200, msgspec.json.encode(_model_object(models[name])))
            return
        data = [_model_object(model) for model in models.values()]
        await exchange.answer(200, msgspec.json.encode({"object": "list", "data": data}))

    async def _show_readiness(self, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                accepts = await self._ready().store.accepts_writes()
        except (ApiError, TimeoutError, psycopg.Error, PoolTimeout, TooManyRequests):
            accepts = False
        if accepts:
            await exchange.answer(200, b'{"database":"ok"}')
        else:
            await exchange.answer(503, b'{"database":"unavailable"}')

    def _ready(self) -> Means:
        if self._means is None:
            raise unavailable("The gateway is starting.")
        return self._means


def _source_id() -> UUID:
    """The meter that this market's gateways are; the one read through the ORM, once, before any request."""
    try:
        return gateway_source(market_now()).id
    finally:
        connections.close_all()


def _only(exchange: Exchange, method: str) -> None:
    if exchange.method != method:
        message = f"Not allowed to {exchange.method} on {exchange.path}; use {method}."
        raise ApiError(405, "method_not_allowed", message, headers={"allow": method})


def _named_contract(exchange: Exchange) -> UUID | None:
    text = exchange.headers.get(CONTRACT_HEADER.lower())
    if text is None:
        return None
    try:
        contract_id = UUID(text)
    except ValueError:
        contract_id = None
    if contract_id is None or str(contract_id) != text.lower():
        raise invalid(CONTRACT_HEADER, f"'{CONTRACT_HEADER}' must be the id of a contract.")
    return contract_id


def _unauthenticated(message: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, headers={"www-authenticate": "Bearer"})


def _unknown_model(name: str) -> ApiError:
    shown = name.encode("ascii", "backslashreplace").decode()[:120]
    return ApiError(404, "model_not_found", f"The model '{shown}' does not exist.", param="model")


def _model_object(model: Model) -> dict[str, Any]:
    """OpenAI's model object; prices per native token are those of the cheapest list rate, exact decimals."""
    version = model.versions[0]
    rate = model.list_rate_micros_per_mtok
    prices: dict[str, dict[str, str]] | None = None
    if rate is not None:
        prices = {
            bucket.value: {"per_token": price.per_token, "per_mtok": price.per_mtok}
            for bucket, price in plain_prices(rate, version.standard_ppm).items()
        }
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": "tokenyard",
        "tokenyard": {
            "grade": model.slug,
            "grade_id": version.id,
            "title": model.title,
            "context_tokens": model.context_tokens,
            "max_output_tokens": version.max_output_tokens,
            "currency": version.currency,
            "rate_micros_per_mtok": rate,
            "rate_per_mtok": None if rate is None else decimal_string(rate, 6),
            "prices": prices,
        },
    }
