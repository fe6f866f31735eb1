"""Trying a contract on a page: the answer that REST gives, in words, and nobody else's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from html import unescape
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.core.cache import cache
from django.test import Client

from marketplace.billing.simulations import MOST_PER_WINDOW
from marketplace.contracts.models import Contract, Quote
from pricing.models import Grade
from tests.billing.test_simulations import MONTH, use
from tests.billing.world import FUNDS, HOUR, LOT, accrue, on_demand
from tests.cast import Party, Plant, fund
from tests.house import row_counts
from tests.portal.conftest import SignIn

PAGE = "/buyer/simulator"
TERMS = {
    "grade": "tiny-chat",
    "firm_lots": "100",
    "volume_lots": "180",
    "months": "",
    "starts_at": "",
    "rate": "0.40",
    "payment": "prepaid",
    "take_share": "0",
    "overage_policy": "stop",
    "max_rate": "",
    "rollover_share": "",
    "rollover_cap_lots": "",
}


@pytest.fixture
def demand(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Contract:
    """150, 40 and 60 lots at 0.60."""
    cache.clear()
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    accrue(contract, now, 1_000_000, now)
    use(contract, plant.offering.list_rate, plant, now, [150 * LOT, 40 * LOT, 60 * LOT])
    return contract


@pytest.fixture
def a_month_later(demand: Contract, now: datetime) -> Iterator[None]:
    with time_machine.travel(now + MONTH + HOUR, tick=False):
        yield


def text_of(answer: Any) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.content.decode())))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {},
            [
                "It would have charged 0.078 USD (52 %) less, and refused 28 % of your usage.",
                "0.072 USD instead of 0.15 USD; 70 of your 250 lots would not have been served.",
                "All in, a Mtok would have cost 0.40 USD instead of 0.60.",
                "Refused: 70 lots because the contract stops there.",
            ],
        ),
        (
            {"volume_lots": "500"},
            ["charged 0.05 USD (33.33 %) more, and refused 20 %", "50 of your 250 lots would not"],
        ),
        (
            {"firm_lots": "150", "volume_lots": "300"},
            ["You would have saved 0.03 USD (20 %): 0.12 USD instead of 0.15 USD."],
        ),
        (
            {"firm_lots": "150", "volume_lots": "500"},
            ["You would have paid 0.05 USD (33.33 %) more: 0.20 USD instead of 0.15 USD."],
        ),
        (
            {"volume_lots": "375"},
            ["It would have charged just what you paid, and refused 20 % of your usage."],
        ),
        (
            {"overage_policy": "list", "rate": "0.60"},
            ["It would have cost just what you paid: 0.15 USD.", "Beyond it, served"],
        ),
        ({"rate": ""}, ["Rate per Mtok, today's price 0.50 USD", "The rate is today's price;"]),
        ({"payment": "arrears", "take_share": "80"}, ["True-up", "In arrears, requests above the take"]),
        ({"rollover_share": "50", "rollover_cap_lots": "10"}, ["Rolled in", "Rolls on"]),
        (
            {"overage_policy": "spot", "max_rate": "0.59"},
            ["70 lots because the rate was above your highest."],
        ),
        ({"starts_at": "2026-03-10T13:00:00", "firm_lots": ""}, ["Please correct what is marked below"]),
    ],
)
def test_the_verdict_is_a_sentence_and_the_figures_stand_below(
    acme: Party, a_month_later: None, sign_in: SignIn, changes: dict[str, str], says: list[str]
) -> None:
    before = row_counts()
    answer = sign_in(acme).post(PAGE, TERMS | changes)
    assert answer.status_code == (422 if changes.get("firm_lots") == "" else 200)
    shown = text_of(answer).replace("\u2009", " ").replace("\u00a0", " ").replace(" ,", ",")
    for sentence in says:
        assert sentence in shown
    assert row_counts() == before
    assert Quote.objects.count() == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"starts_at": "2026-03-10T12:05:00"}, "starts_at"),
        ({"starts_at": "2026-03-10T11:00:00"}, "starts_at"),
        ({"starts_at": "9999-12-31T00:00:00"}, "starts_at"),
        ({"months": "2"}, "months"),
        ({"months": "13"}, "months"),
        ({"firm_lots": "0"}, "firm_lots"),
        ({"firm_lots": "100000", "rate": ""}, "firm_lots"),
        ({"volume_lots": "892801"}, "volume_lots"),
        ({"rate": "NaN"}, "rate"),
        ({"rate": "0"}, "rate"),
        ({"max_rate": "0.5"}, "max_rate"),
        ({"take_share": "101"}, "take_share"),
        ({"take_share": "-1"}, "take_share"),
        ({"rollover_share": "101", "rollover_cap_lots": "1"}, "rollover_share"),
        ({"rollover_share": "10"}, "rollover_cap_lots"),
        ({"rollover_share": "10", "rollover_cap_lots": "1", "payment": "arrears"}, "rollover_share"),
        ({"overage_policy": "more"}, "overage_policy"),
        ({"grade": "other"}, "grade"),
    ],
)
def test_what_cannot_be_tried_is_said_at_its_input(
    acme: Party, a_month_later: None, sign_in: SignIn, changes: dict[str, str], named: str
) -> None:
    answer = sign_in(acme).post(PAGE, TERMS | changes)
    assert answer.status_code == 422
    assert f'id="id_{named}_error"' in answer.content.decode()
    assert 'id="answer"' not in answer.content.decode()


def test_it_is_reached_from_buying_and_from_a_contract_and_leads_to_a_quote(
    acme: Party, demand: Contract, a_month_later: None, sign_in: SignIn
) -> None:
    buyer = sign_in(acme)
    assert f'href="{PAGE}"' in buyer.get("/buyer/buy").content.decode()
    link = f"{PAGE}?contract={demand.id}"
    assert f'href="{link}"' in buyer.get(f"/buyer/contracts/{demand.id}").content.decode()
    assert '<option value="tiny-chat" selected>' in buyer.get(link).content.decode()
    answer = buyer.post(PAGE, TERMS).content.decode()
    [quote] = re.findall(r'href="(/buyer/buy\?[^"]+)"', answer)
    asked = buyer.get(unescape(quote)).content.decode()
    assert 'value="100"' in asked
    assert 'value="180"' in asked


def test_mallory_sees_neither_the_contract_nor_the_usage(
    acme: Party, mallory: Party, demand: Contract, a_month_later: None, sign_in: SignIn
) -> None:
    hers = sign_in(mallory)
    assert hers.get(f"{PAGE}?contract={demand.id}").status_code == 404
    assert hers.get(f"{PAGE}?contract={uuid4()}").status_code == 404
    assert hers.get(f"{PAGE}?contract=x").status_code == 404
    answer = hers.post(PAGE, TERMS)
    assert answer.status_code == 422
    assert "You have used nothing of this grade yet." in answer.content.decode()
    assert "250" not in text_of(answer).split("The contract to try")[0]


def test_a_viewer_has_no_form_and_a_hasty_asker_waits(
    acme: Party,
    a_month_later: None,
    sign_in: SignIn,
    viewer_of: Callable[[Party], Client],
) -> None:
    viewer = viewer_of(acme)
    assert "Try it" not in viewer.get(PAGE).content.decode()
    assert viewer.post(PAGE, TERMS).status_code == 403
    cache.set(f"simulation:{acme.id}", MOST_PER_WINDOW, 60)
    answer = sign_in(acme).post(PAGE, TERMS)
    assert answer.status_code == 422
    assert f"At most {MOST_PER_WINDOW} simulations in 60 seconds." in answer.content.decode()
