"""Delivery keys, signed requests, header lists and stream framing."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from providers.wire import (
    DONE,
    REQUEST_HEADERS,
    DeliveryKey,
    DeliveryKeyExpired,
    DeliveryKeyInvalid,
    SignatureRefused,
    SseParser,
    SseTooLong,
    allowed_headers,
    encode_delivery_key,
    encode_sse,
    sign_request,
    signing_key_id,
    verify_delivery_key,
    verify_signed_request,
)

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MARKET = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = DeliveryKey(
    hold_id=UUID(int=1),
    request_id=UUID(int=2),
    contract_id=UUID(int=3),
    offering_id=UUID(int=4),
    grade_id=UUID(int=5),
    rate_id=UUID(int=6),
    period_start=NOW,
    occurred_at=NOW + timedelta(microseconds=1),
    expires_at=NOW + timedelta(seconds=60),
    max_output_tokens=1024,
    attempt=1,
)


def test_a_delivery_key_comes_back_as_it_was_signed() -> None:
    text = encode_delivery_key(KEY, private_key=MARKET)
    assert len(text) < 400
    assert text.isprintable()
    assert " " not in text
    assert verify_delivery_key(text, public_key=MARKET.public_key(), now=NOW) == KEY


def test_a_delivery_key_expires_at_its_instant() -> None:
    text = encode_delivery_key(KEY, private_key=MARKET)
    last = KEY.expires_at - timedelta(microseconds=1)
    assert verify_delivery_key(text, public_key=MARKET.public_key(), now=last) == KEY
    with pytest.raises(DeliveryKeyExpired, match="expired at"):
        verify_delivery_key(text, public_key=MARKET.public_key(), now=KEY.expires_at)


def test_another_market_cannot_sign_delivery_keys() -> None:
    text = encode_delivery_key(KEY, private_key=OTHER)
    with pytest.raises(DeliveryKeyInvalid, match="not signed by this market"):
        verify_delivery_key(text, public_key=MARKET.public_key(), now=NOW)


def test_a_signature_does_not_carry_over_to_other_terms() -> None:
    payload = encode_delivery_key(replace(KEY, max_output_tokens=10**6), private_key=MARKET).split(".")[1]
    signature = encode_delivery_key(KEY, private_key=MARKET).split(".")[2]
    with pytest.raises(DeliveryKeyInvalid):
        verify_delivery_key(f"dk1.{payload}.{signature}", public_key=MARKET.public_key(), now=NOW)


@given(st.text(max_size=80) | st.text(alphabet="dk1.abcABC-_=", max_size=80))
def test_no_text_is_taken_for_a_delivery_key(text: str) -> None:
    for candidate in (text, f"dk1.{text}", f"dk1.{text}.{text}"):
        with pytest.raises(DeliveryKeyInvalid):
            verify_delivery_key(candidate, public_key=MARKET.public_key(), now=NOW)


@dataclass(frozen=True)
class Signed:
    method: str = "POST"
    url: str = "https://market.example/api/v1/usage?x=1"
    body: bytes = b'{"a":1}\n'
    key_id: str = "host-1"
    nonce: str = "nonce-1"

    def headers(self) -> dict[str, str]:
        return sign_request(
            method=self.method,
            url=self.url,
            body=self.body,
            private_key=OTHER,
            key_id=self.key_id,
            nonce=self.nonce,
            now=NOW,
        )


def verify(
    signed: Signed, headers: dict[str, str], *, now: datetime = NOW, key: Ed25519PrivateKey = OTHER
) -> str:
    return verify_signed_request(
        method=signed.method,
        url=signed.url,
        headers=headers,
        body=signed.body,
        public_key=key.public_key(),
        now=now,
    )


def test_a_signed_request_verifies_and_gives_its_nonce() -> None:
    signed = Signed()
    headers = signed.headers() | {"Content-Type": "application/json", "X-Odd": "é\x01"}
    assert signing_key_id(headers) == "host-1"
    assert verify(signed, headers) == "nonce-1"
    assert verify(signed, {name.lower(): value for name, value in headers.items()}) == "nonce-1"
    for drift_s in (-299, 299):
        assert verify(signed, headers, now=NOW + timedelta(seconds=drift_s)) == "nonce-1"


@pytest.mark.parametrize(
    "changed",
    [
        Signed(method="PUT"),
        Signed(url="https://market.example/api/v1/usage?x=2"),
        Signed(url="https://other.example/api/v1/usage?x=1"),
        Signed(url="http://market.example/api/v1/usage?x=1"),
        Signed(body=b'{"a":2}\n'),
        Signed(body=b""),
    ],
)
def test_a_signature_holds_for_its_own_request_only(changed: Signed) -> None:
    with pytest.raises(SignatureRefused):
        verify(changed, Signed().headers())


def test_a_stale_future_or_foreign_signature_is_refused() -> None:
    headers = Signed().headers()
    with pytest.raises(SignatureRefused, match="check the clock"):
        verify(Signed(), headers, now=NOW + timedelta(seconds=301))
    with pytest.raises(SignatureRefused, match="future"):
        verify(Signed(), headers, now=NOW - timedelta(seconds=301))
    with pytest.raises(SignatureRefused):
        verify(Signed(), headers, key=MARKET)


@pytest.mark.parametrize("missing", ["Signature", "Signature-Input", "Content-Digest"])
def test_a_request_without_one_of_the_headers_is_refused(missing: str) -> None:
    headers = Signed().headers()
    del headers[missing]
    with pytest.raises(SignatureRefused):
        verify(Signed(), headers)


def test_a_signature_that_covers_less_is_refused() -> None:
    headers = Signed().headers()
    for component in ('"@method" ', '"@target-uri" ', ' "content-digest"'):
        thinner = headers | {"Signature-Input": headers["Signature-Input"].replace(component, "")}
        with pytest.raises(SignatureRefused):
            verify(Signed(), thinner)


def test_conversation_ids_never_pass_the_header_list() -> None:
    headers = [
        ("X-Conversation-Id", "1"),
        ("Accept", "*/*"),
        ("Authorization", "Bearer x"),
        ("Cookie", "a=b"),
    ]
    assert allowed_headers(headers, allowed=REQUEST_HEADERS) == {"accept": "*/*"}
    assert "x-conversation-id" not in REQUEST_HEADERS


@given(
    st.lists(st.binary(max_size=30).filter(lambda data: b"\n" not in data and b"\r" not in data), max_size=8),
    st.lists(st.integers(1, 20), max_size=30),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_stream_framing_does_not_depend_on_chunk_boundaries(
    payloads: list[bytes], sizes: list[int], line_end: bytes
) -> None:
    stream = (
        b": comment" + line_end + b"".join(encode_sse(p) for p in [*payloads, DONE]).replace(b"\n", line_end)
    )
    parser, rest = SseParser(), stream
    found: list[bytes] = []
    for size in sizes:
        found += parser.feed(rest[:size])
        rest = rest[size:]
    found += parser.feed(rest)
    assert found == [payload.strip() for payload in payloads] + [DONE]
    assert parser.pending == b""


def test_an_endless_event_is_refused() -> None:
    parser = SseParser()
    for _ in range(50):
        list(parser.feed(b"x" * 20_000))
    with pytest.raises(SseTooLong):
        parser.feed(b"x" * 100_000)
