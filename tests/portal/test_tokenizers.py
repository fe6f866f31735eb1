"""The page of measured tokenizers: for everybody, and linked from where a grade says its kappa."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.test import Client

from marketplace.portal import figures
from pricing.selectors import calibrations_in_force
from pricing.services import publish_grade, publish_known_calibrations
from pricing.units import Bucket
from tests.pricing.test_services import TERMS


def test_the_table_shows_the_last_version_of_every_tokenizer(db: None, now: datetime) -> None:
    assert "No tokenizer has been measured" in Client().get("/tokenizers").content.decode()
    publish_known_calibrations(now=now)
    answer = Client().get("/tokenizers")
    assert answer.status_code == 200
    shown = answer.content.decode()
    for one in calibrations_in_force():
        assert f'id="{one.tokenizer.replace(" ", "-")}"' in shown
        assert one.tokenizer_digest in shown
    # English by cl100k_base, exactly: 25,536 o200k tokens from 25,801.
    assert figures.lots(25_801) in shown
    assert "0.989729" in shown
    assert "style=" not in shown


def test_the_page_costs_a_constant_number_of_queries(
    db: None, now: datetime, django_assert_max_num_queries: Any
) -> None:
    publish_known_calibrations(now=now)
    with django_assert_max_num_queries(3):
        Client().get("/tokenizers")


def test_a_grade_links_to_where_its_kappa_was_measured(db: None, now: datetime) -> None:
    known = {one.tokenizer: one for one in publish_known_calibrations(now=now)}
    one = known["tekken-240911"]
    publish_grade(
        **TERMS | {"kappa_ppm": {}, "tokenizer_digest": f"sha256:{one.tokenizer_digest}"},
        calibration_id=one.pk,
        now=now,
    )
    publish_grade(**TERMS | {"slug": "own", "model": "own", "kappa_ppm": {Bucket.OUTPUT: 900_000}}, now=now)
    measured = Client().get("/market/small-chat-eu").content.decode()
    assert 'href="/tokenizers#tekken-240911"' in measured
    assert "from 0.217288 to 1.105624 over the content classes, median 0.908751" in measured
    assert "Kappa is the operator" in Client().get("/market/own").content.decode()
