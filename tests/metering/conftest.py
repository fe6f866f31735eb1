from datetime import datetime

import pytest

from tests.metering.meters import Meters, make_meters


@pytest.fixture
def meters(db: None, now: datetime) -> Meters:
    return make_meters(now)
