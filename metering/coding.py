"""Bodies in compressed form: as meters send them (gzip, zstd), and as the inbox keeps them. Pure.

What comes from outside is undone within bounds: never more than the limit is made of it, however little it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from backports import zstd

IDENTITY: Final = "identity"
# What `Accept-Encoding` may offer, in the words of the registry of content codings.
CODINGS: Final = (IDENTITY, "gzip", "zstd")
_GZIP_WBITS: Final = 16 + zlib.MAX_WBITS
# Up to 8 MiB of window, which RFC 9659 has every reader of the coding support and no sender exceed.
_ZSTD_OPTIONS: Final[Mapping[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}
# 3 MB of event lines in 2 ms to a twentieth; PostgreSQL's own compression needs 30 ms for an eighth.
_STORED_LEVEL: Final = 1
_STORED_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # No line begins so: it is not UTF-8.
_MAX_STORED_BYTES: Final = 64 * 1024 * 1024


class CodingError(ValueError):
    """The body is not what its coding says: damaged, cut short, or followed by something."""


class TooLong(Exception):
    """The body unfolds to more than the limit. The rest of it was not looked at."""


def decode_body(body: bytes, coding: str, *, limit_bytes: int) -> bytes:
    """What was encoded as `coding` (one of CODINGS). Raises CodingError, TooLong."""
    if coding == IDENTITY:
        if len(body) > limit_bytes:
            raise TooLong
        return body
    return _gunzip(body, limit_bytes) if coding == "gzip" else _unzstd(body, limit_bytes)


def _gunzip(body: bytes, limit_bytes: int) -> bytes:
    decoder = zlib.decompressobj(_GZIP_WBITS)
    try:
        decoded = decoder.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise CodingError("is not gzip, or damaged") from error
    if len(decoded) > limit_bytes:
        raise TooLong
    return _whole(decoded, is_whole=decoder.eof, rest=decoder.unused_data)


def _unzstd(body: bytes, limit_bytes: int) -> bytes:
    try:
        decoder = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        decoded = decoder.decompress(body, limit_bytes + 1)
    except zstd.ZstdError as error:
        raise CodingError("is not zstd, is damaged, or has a window above 8 MiB") from error
    if len(decoded) > limit_bytes:
        raise TooLong
    return _whole(decoded, is_whole=decoder.eof, rest=decoder.unused_data if decoder.eof else b"")


def _whole(decoded: bytes, *, is_whole: bool, rest: bytes) -> bytes:
    if not is_whole:
        raise CodingError("is cut short")
    if rest:
        raise CodingError("has something after its end")
    return decoded


def pack_lines(lines: bytes | memoryview) -> bytes:
    """Event lines as the inbox keeps them."""
    return zstd.compress(lines, _STORED_LEVEL)


def unpack_lines(stored: bytes) -> bytes:
    """The event lines of an inbox row: packed by `pack_lines`, or plain as the gateway's single events are."""
    if not stored.startswith(_STORED_MAGIC):
        return stored
    return decode_body(stored, "zstd", limit_bytes=_MAX_STORED_BYTES)
