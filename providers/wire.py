"""What market, gateway and agent say to each other, as bytes: delivery keys, signed requests, headers, SSE
framing.

Pure: keys, times and nonces are arguments. A delivery key is the market's permission to serve one attempt of
one request; the agent needs nothing else to serve and to meter it. REST calls of an agent are signed as RFC
9421 says, with Ed25519 over method, authority, target and the body's digest.
"""

import base64
import binascii
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
)
from http_message_signatures.algorithms import ED25519
from http_message_signatures.exceptions import HTTPMessageSignaturesException
from msgspec import Meta

# Headers ----------------------------------------------------------------------------------------------------

# What the agent passes to the engine, nothing else. X-Conversation-Id must never be added: it makes llama.cpp
# generate on after the buyer has hung up. Content-Length and Host are written anew, Authorization is ours.
REQUEST_HEADERS: Final = frozenset({"accept", "content-type"})
# What comes back from the engine through agent and gateway.
RESPONSE_HEADERS: Final = frozenset({"content-type", "cache-control", "retry-after"})


def allowed_headers(headers: Iterable[tuple[str, str]], *, allowed: frozenset[str]) -> dict[str, str]:
    """The headers whose lower-case name is in `allowed`, names in lower case; the last of equal names wins."""
    return {lower: value for name, value in headers if (lower := name.lower()) in allowed}


# Delivery keys ----------------------------------------------------------------------------------------------

_KEY_PREFIX: Final = "dk1"
_SIGNATURE_CONTEXT: Final = b"tokenyard delivery key 1\n"
_MAX_KEY_CHARACTERS: Final = 2_048

Bounded = Annotated[int, Meta(ge=0, le=2**53)]
Moment = Annotated[datetime, Meta(tz=True)]


class WireError(ValueError):
    """Something that came over the wire cannot be believed."""


class DeliveryKeyInvalid(WireError):
    """Not a delivery key of this market: malformed, or the signature does not match."""


class DeliveryKeyExpired(WireError):
    """A true delivery key whose time is over."""


class SignatureRefused(WireError):
    """A REST request whose signature is missing, wrong, stale, or does not cover what it must."""


class DeliveryKey(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Permission to serve one attempt. The agent copies request, contract, offering and period from it.

    `grade_id` is the grade version's id; `occurred_at` is admission; `attempt` and `part` number the usage
    event.
    """

    hold_id: UUID
    request_id: UUID
    contract_id: UUID
    offering_id: UUID
    grade_id: UUID
    rate_id: UUID
    period_start: Moment
    occurred_at: Moment
    expires_at: Moment
    max_output_tokens: Bounded
    attempt: Bounded = 0
    part: Bounded = 0


_key_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_key_decoder = msgspec.msgpack.Decoder(DeliveryKey)


def encode_delivery_key(key: DeliveryKey, *, private_key: Ed25519PrivateKey) -> str:
    """The key as one compact printable word for an Authorization header."""
    payload = _key_encoder.encode(key)
    signature = private_key.sign(_SIGNATURE_CONTEXT + payload)
    return f"{_KEY_PREFIX}.{_to_base64url(payload)}.{_to_base64url(signature)}"


def verify_delivery_key(text: str, *, public_key: Ed25519PublicKey, now: datetime) -> DeliveryKey:
    """The key that the market signed. Raises DeliveryKeyInvalid or DeliveryKeyExpired (at `expires_at`
    exactly, too).
    """
    if len(text) > _MAX_KEY_CHARACTERS:
        raise DeliveryKeyInvalid("delivery key: too long")
    prefix, _, rest = text.partition(".")
    payload_text, _, signature_text = rest.partition(".")
    if prefix != _KEY_PREFIX or not signature_text:
        raise DeliveryKeyInvalid(f"delivery key: not of the form {_KEY_PREFIX}.payload.signature")
    try:
        payload, signature = _from_base64url(payload_text), _from_base64url(signature_text)
        public_key.verify(signature, _SIGNATURE_CONTEXT + payload)
        key = _key_decoder.decode(payload)
    except (binascii.Error, UnicodeEncodeError):
        raise DeliveryKeyInvalid("delivery key: not base64url") from None
    except BadSignature:
        raise DeliveryKeyInvalid("delivery key: not signed by this market") from None
    except msgspec.DecodeError as error:
        raise DeliveryKeyInvalid(f"delivery key: {error}") from None
    if now >= key.expires_at:
        raise DeliveryKeyExpired(f"delivery key: expired at {key.expires_at.isoformat()}")
    return key


def _to_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_base64url(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


# Signed requests (RFC 9421) ---------------------------------------------------------------------------------

_COVERED: Final = ("@method", "@authority", "@target-uri", "content-digest")
_LABEL: Final = "tokenyard"
_MAX_PARAMETER_CHARACTERS: Final = 200
# Whose key signs what the market asks of an agent, and where it asks: the engine's registers, usage that went missing.
MARKET_KEY_ID: Final = "market"
METER_REGISTERS: Final = "/meter/registers"
METER_USAGE: Final = "/meter/usage"
MAX_SIGNATURE_AGE: Final = timedelta(seconds=300)
MAX_CLOCK_SKEW: Final = timedelta(seconds=300)


@dataclass
class _Message:
    """The shape that http_message_signatures reads a request in."""

    method: str
    url: str
    headers: MutableMapping[str, str]


class _OneKey(HTTPSignatureKeyResolver):
    def __init__(
        self, *, private: Ed25519PrivateKey | None = None, public: Ed25519PublicKey | None = None
    ) -> None:
        self._private = private
        self._public = public

    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey:
        assert self._private is not None
        return self._private

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
        assert self._public is not None
        return self._public


class _VerifierAt(HTTPMessageVerifier):
    """The library's verifier with the caller's clock instead of the machine's."""

    def __init__(self, *, public_key: Ed25519PublicKey, now: datetime) -> None:
        super().__init__(signature_algorithm=ED25519, key_resolver=_OneKey(public=public_key))
        self._now = now

    def validate_created_and_expires(self, sig_input: Any, max_age: timedelta | None = None) -> None:
        created = sig_input.params.get("created")
        if type(created) is not int:
            raise InvalidSignature('the signature has no "created" time')
        age_s = self._now.timestamp() - created
        if age_s > MAX_SIGNATURE_AGE.total_seconds():
            raise InvalidSignature(f"the signature is {age_s:.0f} s old; check the clock of this host")
        if age_s < -MAX_CLOCK_SKEW.total_seconds():
            raise InvalidSignature(
                f"the signature lies {-age_s:.0f} s in the future; check the clock of this host"
            )
        expires = sig_input.params.get("expires")
        if expires is not None and (type(expires) is not int or self._now.timestamp() > expires):
            raise InvalidSignature("the signature has expired")


def sign_request(
    *,
    method: str,
    url: str,
    body: bytes,
    private_key: Ed25519PrivateKey,
    key_id: str,
    nonce: str,
    now: datetime,
    covered_headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers (Content-Digest, Signature-Input, Signature) to send with this request.

    `covered_headers` are signed too, and returned with them. `key_id` is the source id the market gave at
    enrolment; `nonce` is fresh for every request.
    """
    message = _Message(method, url, dict(covered_headers or {}))
    signer = HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=_OneKey(private=private_key))
    signer.sign(
        message,
        key_id=key_id,
        created=now,
        nonce=nonce,
        label=_LABEL,
        covered_component_ids=(*_COVERED, *map(str.lower, covered_headers or ())),
        body=body,
    )
    return dict(message.headers)


def signing_key_id(headers: Mapping[str, str]) -> str:
    """Who says he signed: the `keyid` of the one signature, not yet proved. Raises SignatureRefused."""
    field = next((value for header, value in headers.items() if header.lower() == "signature-input"), "")
    _, separator, rest = field.partition(';keyid="')
    key_id, closing, _ = rest.partition('"')
    if (
        not separator
        or not closing
        or not key_id.isprintable()
        or not 0 < len(key_id) <= _MAX_PARAMETER_CHARACTERS
    ):
        raise SignatureRefused('signature: Signature-Input must carry one signature with a "keyid"')
    return key_id


def verify_signed_request(
    *,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    public_key: Ed25519PublicKey,
    now: datetime,
    covered_headers: Collection[str] = (),
) -> str:
    """Proves that `public_key`'s owner signed this method, URL and body, and the headers named (in lower case), within
    five minutes before or after now.

    Returns the nonce; refusing one seen before is the caller's. Raises SignatureRefused.
    """
    key_id = signing_key_id(headers)
    # Only what the signature reads: other headers may be malformed without being our business.
    wanted = {"signature", "signature-input", "content-digest", *covered_headers}
    message = _Message(
        method, url, {name: value for name, value in headers.items() if name.lower() in wanted}
    )
    verifier = _VerifierAt(public_key=public_key, now=now)
    try:
        results = verifier.verify(
            message, max_age=MAX_SIGNATURE_AGE, require_components=(*_COVERED, *covered_headers), body=body
        )
    except (InvalidSignature, HTTPMessageSignaturesException, ValueError) as error:
        raise SignatureRefused(f"signature: {str(error) or 'does not match'}") from None
    if len(results) != 1:
        raise SignatureRefused("signature: exactly one is expected")
    proved = results[0].parameters
    # The key was looked up by a reading of the raw header; it must be the one that was signed.
    if proved.get("keyid") != key_id:
        raise SignatureRefused("signature: keyid is ambiguous")
    nonce = proved.get("nonce")
    if not isinstance(nonce, str) or not nonce or len(nonce) > _MAX_PARAMETER_CHARACTERS:
        raise SignatureRefused('signature: Signature-Input must carry a "nonce" of at most 200 characters')
    return nonce


# Server-sent events -----------------------------------------------------------------------------------------

DONE: Final = b"[DONE]"
_MAX_EVENT_BYTES: Final = 1 << 20


def carries_output(chunk: object) -> bool:
    """Whether a chunk of a stream, decoded, brings anything that the model wrote: text, reasoning or a tool call.

    Several engines send a first chunk with nothing but the role, at once and before they have computed anything
    (seen: 3 ms where the first text took 50): a time to first token must not end there.
    """
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta") or choice.get("message")
        if choice.get("text") or (
            isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")
        ):
            return True
    return False


class SseTooLong(WireError):
    """One event is larger than a megabyte: not what an engine sends."""


class SseParser:
    """Cuts a byte stream into the payloads of its `data:` lines, whatever the chunk boundaries.

    An OpenAI stream has one `data:` line per event, so a line is an event; comments and other fields are
    skipped. Line ends may be LF or CRLF. The usual chunk, whole events, is never copied into a buffer.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The payloads that `chunk` completes, in order. Raises SseTooLong."""
        lines = (self._rest + chunk if self._rest else chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise SseTooLong("stream: an event is longer than a megabyte")
        return (line[5:].strip() for line in lines if line.startswith(b"data:"))

    @property
    def pending(self) -> bytes:
        """What came after the last line end."""
        return self._rest


def encode_sse(payload: bytes) -> bytes:
    """One event with one `data:` line. `payload` holds no line feed."""
    return b"data: " + payload + b"\n\n"
