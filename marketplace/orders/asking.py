"""How often one asker may have something computed anew: counted in the cache, in windows of a minute."""

from __future__ import annotations

import logging
from typing import Final

from django.core.cache import cache

from marketplace.errors import DomainError

WINDOW_S: Final = 60


logger = logging.getLogger(__name__)


class TooManyQuestions(DomainError):
    """This asker asked too often; nothing was computed."""

    code = "too_many_requests"
    http_status = 429
    title = "Too many requests"


class CannotCount(DomainError):
    """The cache does not answer, so nobody knows how often this asker asked; nothing was computed."""

    code = "unavailable"
    http_status = 503
    title = "Unavailable"


def count_question(key: str, *, most: int, what: str) -> None:
    """Count one question under `key`. Raises TooManyQuestions beyond `most` in a window, CannotCount without a cache.

    A cache that is down answers nothing here, unlike at sign-in, where it would lock people out: the bound is what
    keeps a guesser slow, and these questions can wait.
    """
    try:
        cache.add(key, 0, WINDOW_S)
        try:
            asked = cache.incr(key)
        except ValueError:  # it ran out between the two
            cache.set(key, 1, WINDOW_S)
            asked = 1
    except Exception as error:  # whatever the cache's client raises when it is down
        logger.warning("a question was not answered: the cache does not answer", exc_info=True)
        raise CannotCount(f"No {what} are answered at the moment.", retry_after_s=10) from error
    if asked > most:
        raise TooManyQuestions(f"At most {most} {what} in {WINDOW_S} seconds.", retry_after_s=WINDOW_S)
