"""The form of an API key: `ty_<key_id>_<secret>`. Pure: text and digests, no database.

The secret has 256 bits of chance in it, so one SHA-256 keeps it; a slow hash is for what people choose themselves.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import b32encode
from typing import Final, NamedTuple

_FORM: Final = re.compile(r"ty_([a-z2-7]{16})_([a-z2-7]{52})", re.ASCII)
# What a presented secret is compared with when no such key exists: the same work, never equal.
NOBODY: Final = bytes(32)


class Presented(NamedTuple):
    """What somebody showed: the part that finds the row, and the digest that proves it."""

    key_id: str
    secret_sha256: bytes


def new_key() -> tuple[Presented, str]:
    """A fresh key: what is kept of it, and the text that is shown once."""
    key_id = b32encode(secrets.token_bytes(10)).decode().lower()
    secret = b32encode(secrets.token_bytes(32)).decode().lower().rstrip("=")
    return Presented(key_id, _digest(secret)), f"ty_{key_id}_{secret}"


def parse(text: str) -> Presented | None:
    """None for what cannot be one of our keys."""
    match = _FORM.fullmatch(text)
    return Presented(match[1], _digest(match[2])) if match else None


def matches(presented: Presented, kept_sha256: bytes) -> bool:
    """In constant time."""
    return hmac.compare_digest(presented.secret_sha256, kept_sha256)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
