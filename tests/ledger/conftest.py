from __future__ import annotations

from datetime import datetime

import pytest

from tests.ledger.books import Books, make_books


@pytest.fixture
def books(db: None, now: datetime) -> Books:
    return make_books(now)
