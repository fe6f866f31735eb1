"""The HTTP face: keys, strict parameters, idempotency, faults. An ASGI application."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from tests.stripe_sim import connect, payments
from tests.stripe_sim.parameters import parse, route_of, unknown
from tests.stripe_sim.world import Refused, World, public

Json = dict[str, Any]
SECRET_KEY: Final = "sk_test_simulated"
KEYS_LIVE_S: Final = 24 * 3600


@dataclass
class Fault:
    """What befalls the next call whose route begins with `route`.

    429 (before anything), 500 (fails before its effect; stored), 500_after (stored after its effect), drop (the
    connection breaks after the effect; stored), drip (after the effect, byte by byte, and never all in time), hang
    (`seconds` before anything happens), stall (`seconds` between the effect and its answer), slow (half a second before
    the effect, with the key taken).
    """

    kind: str
    route: str
    times: int = 1
    seconds: float = 0


@dataclass
class Kept:
    fingerprint: str
    at: int
    status: int | None = None
    body: Json | None = None


@dataclass
class StripeApp:
    world: World
    faults: list[Fault] = field(default_factory=list)
    keys: dict[tuple[str, str], Kept] = field(default_factory=dict)
    # (route, idempotency key) of every call that was let in.
    calls: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Json], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        status, body, fault, replayed = await self._answer(scope, headers, raw.decode())
        content = json.dumps(public(body)).encode()
        lines = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        lines += [(b"request-id", b"req_sim"), (b"stripe-should-retry", b"false")]
        if replayed:
            lines.append((b"idempotent-replayed", b"true"))
        await send({"type": "http.response.start", "status": status, "headers": lines})
        if fault == "drop":
            # Half an answer, then nothing: the server closes the connection for want of the rest.
            await send({"type": "http.response.body", "body": content[:10], "more_body": True})
            return
        if fault == "drip":
            # Each byte in good time, the whole never.
            for byte in content:
                await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
                await asyncio.sleep(0.2)
            return
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Any, headers: dict[str, str], raw: str) -> tuple[int, Json, str, bool]:
        method, path = scope["method"], scope["path"]
        try:
            self._check_key(headers)
            found = route_of(method, path)
            if found is None:
                raise Refused(f"Unrecognized request URL ({method}: {path}).", status=404)
            route, object_id = found
            given = parse(raw if method == "POST" else scope["query_string"].decode())
            fault = self._fault(route)
            if fault and fault.kind == "hang":
                await asyncio.sleep(fault.seconds)
            if fault and fault.kind == "429":
                message = "Request rate limit exceeded."
                raise Refused(message, status=429, code="rate_limit")
            if name := unknown(route, given):
                raise Refused(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)
        except Refused as error:
            return error.status, error.body, "", False
        account = headers.get("stripe-account", "")
        kind = fault.kind if fault else ""
        if method == "GET":
            try:
                with self.world.lock:
                    if kind == "500":
                        return 500, _broken(), "", False
                    self.calls.append((route, ""))
                    return 200, self._read(route, object_id, given, account, path), kind, False
            except Refused as error:
                return error.status, error.body, "", False
        stall_s = fault.seconds if fault else 0
        return await self._write(route, object_id, given, account, headers, kind, f"{path}?{raw}", stall_s)

    async def _write(
        self,
        route: str,
        object_id: str,
        given: Json,
        account: str,
        headers: dict[str, str],
        kind: str,
        told: str,
        seconds: float,
    ) -> tuple[int, Json, str, bool]:
        key = headers.get("idempotency-key", "")
        fingerprint = hashlib.sha256(f"{account} {told}".encode()).hexdigest()
        place = (account, key)
        with self.world.lock:
            kept = self.keys.get(place) if key else None
            if kept and self.world.now_s - kept.at > KEYS_LIVE_S:
                kept = None
            if kept:
                if kept.fingerprint != fingerprint:
                    message = (
                        "Keys for idempotent requests can only be used with the same parameters they were first used "
                        f"with. Try using a key other than '{key}' if you meant to execute a different request."
                    )
                    return 400, Refused(message, kind="idempotency_error").body, "", False
                if kept.status is None:
                    message = "There is currently another in-progress request using this Idempotent Key."
                    code = "idempotency_key_in_use"
                    return 409, Refused(message, kind="idempotency_error", code=code).body, "", False
                assert kept.body is not None
                return kept.status, kept.body, kind if kind == "drop" else "", True
            kept = Kept(fingerprint, self.world.now_s)
            if key:
                self.keys[place] = kept
            self.calls.append((route, key))
        if kind == "slow":
            await asyncio.sleep(0.5)
        with self.world.lock:
            try:
                if kind == "500":
                    kept.status, kept.body = 500, _broken()
                else:
                    made = self._change(route, object_id, given, account)
                    # What is kept is the answer as it was, not the object as it becomes.
                    kept.status, kept.body = 200, json.loads(json.dumps(public(made)))
            except Refused as error:
                body = json.loads(json.dumps(public(error.body)))
                if error.status in (400, 404) and body["error"].get("code", "").startswith("parameter_"):
                    self.keys.pop(place, None)  # Nothing began, so nothing is kept.
                kept.status, kept.body = error.status, body
            if kind == "500_after":
                kept.status, kept.body = 500, _broken()
        if kind == "stall":
            await asyncio.sleep(seconds)
        assert kept.body is not None
        return kept.status, kept.body, kind, False

    def _check_key(self, headers: dict[str, str]) -> None:
        if headers.get("authorization") != f"Bearer {SECRET_KEY}":
            raise Refused("Invalid API Key provided", status=401, kind="invalid_request_error")

    def _fault(self, route: str) -> Fault | None:
        for fault in self.faults:
            if route.startswith(fault.route) and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _read(self, route: str, object_id: str, given: Json, account: str, path: str) -> Json:
        name = route.split()[1].removeprefix("/v1/")
        if name == "balance":
            return connect.balance(self.world, account)
        if name == "transfers/{id}/reversals":
            rows = connect.listed(self.world, "transfer_reversal", {"limit": 100}, account, path)
            rows["data"] = [row for row in rows["data"] if row["transfer"] == object_id]
            return rows
        kind = _KINDS[name.split("/{id}")[0]]
        if object_id:
            return expanded(self.world, self.world.get(unquote(object_id), kind, _own(kind, account)), given)
        return connect.listed(self.world, kind, given, _own(kind, account), path)

    def _change(self, route: str, object_id: str, given: Json, account: str) -> Json:
        world = self.world
        match route.removeprefix("POST /v1/"):
            case "customers":
                made = payments.create_customer(world, given)
            case "customers/{id}":
                made = payments.update_customer(world, object_id, given)
            case "payment_methods/{id}/attach":
                made = payments.attach(world, object_id, given.get("customer", ""))
            case "payment_methods/{id}/detach":
                made = world.get(object_id, "payment_method") | {"customer": None}
                world.objects[object_id]["customer"] = None
            case "setup_intents":
                made = payments.create_setup_intent(world, given)
            case "setup_intents/{id}/confirm":
                made = payments.confirm_setup_intent(world, object_id, given)
            case "checkout/sessions":
                made = payments.create_session(world, given)
            case "checkout/sessions/{id}/expire":
                made = payments.expire_session(world, object_id)
            case "payment_intents":
                made = payments.create_intent(world, given)
            case "payment_intents/{id}/confirm":
                made = payments.confirm_intent(world, object_id, given)
            case "payment_intents/{id}/cancel":
                made = payments.cancel_intent(world, object_id)
            case "refunds":
                made = payments.create_refund(world, given)
            case "accounts":
                made = connect.create_account(world, given)
            case "account_links":
                made = connect.create_account_link(world, given)
            case "transfers":
                made = connect.create_transfer(world, given)
            case "transfers/{id}/reversals":
                made = connect.reverse_transfer(world, object_id, given)
            case "payouts":
                made = connect.create_payout(world, given, account)
            case _:
                raise AssertionError(route)
        return expanded(world, made, given)


_KINDS: Final = {
    "customers": "customer",
    "payment_methods": "payment_method",
    "setup_intents": "setup_intent",
    "checkout/sessions": "checkout.session",
    "payment_intents": "payment_intent",
    "charges": "charge",
    "refunds": "refund",
    "disputes": "dispute",
    "accounts": "account",
    "transfers": "transfer",
    "payouts": "payout",
    "balance_transactions": "balance_transaction",
    "events": "event",
}


def _own(kind: str, account: str) -> str:
    """Accounts and events are the platform's to read, whoever is asked about."""
    return "" if kind in ("account", "event") else account


def expanded(world: World, value: Json, given: Json) -> Json:
    shown = dict(value)
    for name in given.get("expand", {}).values():
        if isinstance(shown.get(name), str):
            shown[name] = world.objects[shown[name]]
    return shown


def _broken() -> Json:
    return {"error": {"type": "api_error", "message": "An unknown error occurred"}}
