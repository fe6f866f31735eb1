"""The market's signed word about an order: what it took, when, what it holds, where the order first competes. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from marketplace.orders.terms import canonical

RECEIPT: Final = "tokenyard.bid-receipt.v1"
# The market's key signs delivery keys too: with a context of its own, no signature of one kind passes for another.
SIGNATURE_CONTEXT: Final = b"tokenyard bid receipt 1\n"


class ReceiptInvalid(ValueError):
    """Not this market's word: the document was changed, or another key signed it."""


def key_id_of(public_key: bytes) -> str:
    """Names a market key: the first 128 bits of the SHA-256 of its 32 raw bytes, in hex."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def sign_receipt(document: Mapping[str, Any], *, private_key: Ed25519PrivateKey) -> bytes:
    """64 bytes over the context and the document's canonical form."""
    return private_key.sign(SIGNATURE_CONTEXT + canonical(document))


def verify_receipt(document: Mapping[str, Any], signature: str, *, public_key: bytes) -> None:
    """Raises ReceiptInvalid unless the holder of `public_key` (32 raw bytes) signed; `signature` is base64."""
    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public_key).verify(raw, SIGNATURE_CONTEXT + canonical(document))
    except (binascii.Error, InvalidSignature, ValueError):
        raise ReceiptInvalid("the market did not sign this receipt") from None
