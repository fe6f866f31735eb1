"""Guessing passwords is slow: after ten wrong sign-ins an e-mail address waits five minutes, after a hundred the
network address they came from (which may be a whole office, or a proxy).

Counted in the cache: losing it forgives, and a cache that is down lets people in rather than out.
"""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import Final

from django.core.cache import cache

MOST_WRONG_BY_EMAIL: Final = 10
MOST_WRONG_BY_IP: Final = 100
WINDOW_S: Final = 300

logger = logging.getLogger(__name__)


def may_sign_in(*, email: str, ip: str) -> bool:
    """False while too many wrong sign-ins came for this e-mail address or from this network address."""
    limits = _limits(email, ip)
    try:
        counts = cache.get_many(limits)
    except Exception:  # whatever the cache's client raises when it is down
        logger.warning("sign-ins are not counted: the cache does not answer", exc_info=True)
        return True
    return all(count < limits[key] for key, count in counts.items())


def note_wrong_sign_in(*, email: str, ip: str) -> None:
    try:
        for key in _limits(email, ip):
            cache.add(key, 0, WINDOW_S)
            cache.incr(key)
    except Exception:  # as above; also when the count expired between the two
        logger.warning("a wrong sign-in was not counted", exc_info=True)


def _limits(email: str, ip: str) -> dict[str, int]:
    limits = (("email", email.lower(), MOST_WRONG_BY_EMAIL), ("ip", ip, MOST_WRONG_BY_IP))
    return {f"sign-in:{kind}:{sha256(text.encode()).hexdigest()}": most for kind, text, most in limits}
