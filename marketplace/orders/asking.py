"""How often one asker may have something computed anew: counted in the cache, in windows of a minute."""

from __future__ import annotations

from typing import Final

from django.core.cache import cache

from marketplace.errors import DomainError

WINDOW_S: Final = 60


class TooManyQuestions(DomainError):
    """This asker asked too often; nothing was computed."""

    code = "too_many_requests"
    http_status = 429
    title = "Too many requests"


def count_question(key: str, *, most: int, what: str) -> None:
    """Count one question under `key`. Raises TooManyQuestions beyond `most` in a window.

    A cache that is down answers nothing here: the bound is what keeps a guesser slow.
    """
    cache.add(key, 0, WINDOW_S)
    try:
        asked = cache.incr(key)
    except ValueError:  # it ran out between the two
        cache.set(key, 1, WINDOW_S)
        asked = 1
    if asked > most:
        raise TooManyQuestions(f"At most {most} {what} in {WINDOW_S} seconds.", retry_after_s=WINDOW_S)
