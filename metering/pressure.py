"""Back-pressure: while the inbox is longer than its bounds, meters keep what they have and come again later.

Only what hosts send is held off. What the gateway metered is part of the capture of a request that was served already.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from django.conf import settings
from django.db import connection

from marketplace.errors import DomainError

# How long a process believes its last look; the bounds may be passed by what comes meanwhile.
LOOK_EVERY_S = 1.0
_LONGEST_WAIT_S: Final = 60
_DEPTH_SQL: Final = """
SELECT count(*), coalesce(sum(body_bytes), 0)::bigint, coalesce(extract(epoch FROM clock_timestamp()
       - uuid_extract_timestamp((SELECT id FROM metering_usagebatch WHERE status = 'pending' ORDER BY id LIMIT 1))), 0)
  FROM (SELECT body_bytes FROM metering_usagebatch WHERE status = 'pending' LIMIT %s) AS waiting
"""


class InboxFull(DomainError):
    """The market has more usage than it can take in now; nothing was kept, send it again later."""

    code = "inbox_full"
    http_status = 429
    title = "Too much usage waits to be ingested"


class Depth(NamedTuple):
    """How much waits in the inbox: batches (counted no further than the bound), their bytes, the oldest's age."""

    batches: int
    bytes: int
    oldest_s: float


# When this process last looked, and what it saw; empty before.
_looked: list[tuple[float, Depth]] = []


def check_inbox() -> None:
    """Raises InboxFull with the seconds to wait: as long as the oldest batch has waited, from 1 to 60."""
    depth = _depth()
    if depth.batches < settings.USAGE_INBOX_MAX_BATCHES and depth.bytes < settings.USAGE_INBOX_MAX_BYTES:
        return
    wait_s = min(max(round(depth.oldest_s), 1), _LONGEST_WAIT_S)
    raise InboxFull(
        f"{depth.batches} batches with {depth.bytes} bytes wait to be ingested.", retry_after_s=wait_s
    )


def _depth() -> Depth:
    now_s = time.monotonic()
    if not _looked or now_s - _looked[0][0] >= LOOK_EVERY_S:
        with connection.cursor() as cursor:
            cursor.execute(_DEPTH_SQL, [settings.USAGE_INBOX_MAX_BATCHES])
            batches, size, oldest_s = cursor.fetchone()
        _looked[:] = [(now_s, Depth(batches, size, float(oldest_s)))]
    return _looked[0][1]
