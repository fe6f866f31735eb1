"""What a grade promises of speed, and what was measured and credited, on the pages of those it concerns."""

from __future__ import annotations

from datetime import datetime

from django.test import Client

from marketplace.contracts.models import Contract
from pricing.models import Grade
from tests.billing.served import serve
from tests.billing.test_service_credits import BROKEN, contract, rich_acme, settle
from tests.billing.world import accrue
from tests.cast import Party, Plant
from tests.portal.conftest import SignIn

__all__ = ["contract", "rich_acme"]  # Fixtures of the neighbour.

PROMISED = (
    '<td>time to first token</td><td class="n">p95</td><td class="n">500 ms</td><td class="n">10\u2009%</td>'
)
MEASURED = '<td class="n"><b>900 ms</b></td><td class="n">20</td>'


def test_buyer_and_provider_see_the_promise_and_what_became_of_it(
    contract: Contract,
    rich_acme: Party,
    hyperion: Party,
    mallory: Party,
    plant: Plant,
    sign_in: SignIn,
    now: datetime,
) -> None:
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    settle(now)
    for party, path in (
        (rich_acme, f"/buyer/contracts/{contract.id}"),
        (hyperion, f"/provider/offerings/{plant.offering.id}"),
    ):
        text = sign_in(party).get(path).content.decode()
        assert PROMISED in text, path
        assert MEASURED in text, path
        assert "0.0012" in text, path
        assert sign_in(mallory).get(path).status_code in (403, 404)


def test_everybody_sees_the_promise_on_the_grades_page(
    contract: Contract, grade: Grade, sign_in: SignIn, mallory: Party
) -> None:
    path = f"/market/{grade.family.slug}"
    for client in (sign_in(mallory), Client()):
        assert PROMISED in client.get(path).content.decode()


def test_pages_of_a_grade_without_levels_say_nothing_of_them(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, sign_in: SignIn
) -> None:
    for party, path in (
        (rich_acme, f"/market/{grade.family.slug}"),
        (hyperion, f"/provider/offerings/{plant.offering.id}"),
    ):
        text = sign_in(party).get(path).content.decode()
        assert "promises of speed" not in text
        assert "Service levels" not in text
