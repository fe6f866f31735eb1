"""Every page answers the role it is for, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import URLPattern
from pytest_django import DjangoAssertNumQueries

from marketplace.accounts.models import Membership
from marketplace.accounts.services import SYSTEM, add_member
from marketplace.billing.models import TopUp
from marketplace.ids import uuid7
from marketplace.orders.selectors import published_auctions
from marketplace.portal.urls import urlpatterns
from tests.cast import Party
from tests.portal.conftest import SignIn
from tests.portal.papers import papers
from tests.portal.world import Day

PUBLIC = {
    "home",
    "market",
    "market-grade",
    "tokenizers",
    "price-index",
    "leaderboard",
    "providers",
    "sign-in",
    "sign-out",
    "switch-organization",
}
# Names of pages that only take POST.
ACTIONS = {
    "buyer-bid-worst-case",
    "buyer-bid-cancel",
    "buyer-cover-worst-case",
    "buyer-key-revoke",
    "buyer-invoice-pay",
    "buyer-cancel-payment",
    "buyer-on-demand-payment",
    "operator-give-up",
    "provider-payout-account",
    "provider-host-code",
    "provider-host-outages",
    "provider-host-outage-withdraw",
    "provider-offering-status",
    "provider-offering-tariffs",
    "provider-offering-tariff-withdraw",
    "provider-discrepancy-accept",
    "operator-ledger-check",
    "operator-discrepancy-resolve",
    "operator-control-halt",
    "operator-control-resume",
    "operator-control-rate",
    "operator-control-cap",
    "operator-cap-decline",
    "operator-billing-grant-revoke",
    "operator-verify-number",
}
# Pages of every organization, whatever its role: test_webhooks.py and test_test_clock.py here, tests/test_tenancy.py.
EVERYBODYS = {"webhooks", "webhook", "notices", "test-clock"}
# Session, user, memberships and the market's clock, on every page.
DOOR = 6


def addresses(day: Day, *, of: str = "") -> dict[str, str]:
    """The address of every page of a role, with acme's and hyperion's real ids in it."""
    ids = {
        "contract_id": day.committed.id,
        "quote_id": day.quote.id,
        "bid_id": day.bid.id,
        "api_key_id": day.api_key_id,
        "invoice_id": day.invoice.id,
        "line_id": day.invoice.lines.all()[0].id,
        "charge_id": day.charge.id,
        "host_id": day.plant.host.id,
        "offering_id": day.plant.offering.id,
        "statement_id": day.statement.id,
        "discrepancy_id": day.discrepancy.id,
        "payment_id": TopUp.objects.filter(organization=day.bid.organization).latest("id").id,
        # Only its button takes an id, and a viewer's door is closed before it is looked up.
        "review_id": uuid7(),
        "operation_id": uuid7(),
        "outage_id": uuid7(),
        "tariff_id": uuid7(),
        "organization_id": uuid7(),
        **papers(day),
        "auction_id": published_auctions([day.grade.id])[0].id,
    }
    found = {}
    for pattern in urlpatterns:
        assert isinstance(pattern, URLPattern)
        name = pattern.name or ""
        if name in PUBLIC | EVERYBODYS or not name.startswith(of):
            continue
        path = re.sub(r"<uuid:(\w+)>", lambda match: str(ids[match[1]]), str(pattern.pattern))
        path = path.replace("<slug:slug>", "tiny-chat")
        assert "<" not in path, f"tell this test which id {name} means"
        found[name] = f"/{path}"
    return found


def test_pages_of_the_three_roles_and_nobody_elses(
    day: Day, acme: Party, hyperion: Party, operator: Party, mallory: Party, sign_in: SignIn
) -> None:
    """One test, because making the day costs seconds: (role, page) over everybody."""
    parties = {"buyer": acme, "provider": hyperion, "operator": operator}
    clients = {role: sign_in(party) for role, party in parties.items()}
    for role, client in clients.items():
        for name, path in addresses(day).items():
            if name in ACTIONS:
                continue
            expected = 200 if name.startswith(role) else 404
            answer = client.get(path)
            assert answer.status_code == expected, (role, name)
            if expected == 200:
                assert answer["Cache-Control"].startswith("max-age=0")
                assert "private" in answer["Cache-Control"]
                if answer["Content-Type"] == "application/pdf":
                    assert answer.getvalue().startswith(b"%PDF-"), name
                    continue
                assert "style=" not in answer.getvalue().decode(), "the security policy forbids inline styles"
    # Nobody signed in: to the sign-in, and back to where he wanted to go.
    for name, path in addresses(day).items():
        answer = Client().post(path) if name in ACTIONS else Client().get(path)
        assert answer.status_code == 302, name
        assert answer["Location"].startswith("/signin?next="), name
    # Mallory buys and sells herself, and whatever is acme's or hyperion's does not exist for her.
    intruder = sign_in(mallory)
    secrets = [str(value) for value in (day.committed.id, day.bid.id, day.invoice.number, day.plant.host.id)]
    secrets += [acme.organization.name, hyperion.organization.name, "alpha"]
    for name, path in addresses(day).items():
        foreign = any(character.isdigit() for character in path) or name.startswith("operator")
        # An auction is everybody's, and what one could have bid in it.
        foreign = foreign and name != "buyer-what-if"
        for answer in (intruder.get(path), intruder.post(path, {"move": "pause"})):
            if foreign:
                assert answer.status_code in (404, 405), (name, answer.status_code)
            shown = answer.getvalue().decode()
            assert not [secret for secret in secrets if secret in shown], name
    day.bid.refresh_from_db()
    day.plant.offering.refresh_from_db()
    assert (day.bid.status, day.plant.offering.status) == ("open", "listed")


def test_public_pages_show_prices_and_never_names(day: Day, acme: Party, hyperion: Party) -> None:
    for path in ("/", "/market", "/market/tiny-chat", "/tokenizers", "/signin"):
        answer = Client().get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer["Content-Security-Policy"]
        shown = answer.content.decode()
        assert acme.organization.name not in shown
        assert hyperion.organization.name not in shown
    shown = Client().get("/market").content.decode()
    assert "0.26" in shown  # The floor of the dearer host: the last accepted ask.
    assert "0.065" in shown  # The same rate for one native input token in four.
    assert "Sealed" in shown
    assert Client().get("/market/no-such-grade").status_code == 404


def test_a_viewer_reads_and_changes_nothing(
    day: Day, acme: Party, viewer_of: Callable[[Party], Client]
) -> None:
    viewer = viewer_of(acme)
    for name, path in addresses(day, of="buyer").items():
        if name not in ACTIONS:
            assert viewer.get(path).status_code == 200, name
        assert viewer.post(path, {}).status_code in (403, 405), name
    assert "Accept and buy" not in viewer.get(f"/buyer/quotes/{day.quote.id}").content.decode()
    assert "Place the bid" not in viewer.get("/buyer/bid").content.decode()


def test_list_pages_cost_a_constant_number_of_queries(
    day: Day,
    acme: Party,
    hyperion: Party,
    operator: Party,
    sign_in: SignIn,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    pages = {
        acme: {
            "/buyer": 12, "/buyer/bid": 15, "/buyer/keys": 3, "/buyer/invoices": 1, "/buyer/charges": 1,
            "/buyer/discrepancies": 4, "/buyer/ledger": 5,
        },
        # Of each of the first two, four or five say why payouts wait.
        hyperion: {"/provider": 13, "/provider/earnings": 8, "/provider/discrepancies": 4, "/provider/ledger": 5},
        operator: {"/operator": 12, "/operator/discrepancies": 3},
    }  # fmt: skip
    for party, costs in pages.items():
        client = sign_in(party)
        for path, most in costs.items():
            client.get(path)
            with django_assert_max_num_queries(DOOR + most):
                client.get(path)
    with django_assert_max_num_queries(DOOR + 8):
        Client().get("/market")


def test_one_person_in_two_organizations_switches_between_them(
    acme: Party, hyperion: Party, mallory: Party, grade: object, sign_in: SignIn, clock_at: object
) -> None:
    add_member(
        organization_id=hyperion.id,
        user_id=acme.user.id,
        role=Membership.Role.MEMBER,
        now=acme.organization.created_at,
        actor=SYSTEM,
    )
    client = sign_in(acme)
    assert client.get("/buyer").status_code == 200
    assert client.get("/provider").status_code == 404
    answer = client.post("/organization", {"organization": str(hyperion.id)})
    assert (answer.status_code, answer["Location"]) == (302, "/provider")
    assert client.get("/provider").status_code == 200
    assert client.get("/buyer").status_code == 404
    for other in (str(mallory.id), str(uuid4()), "nonsense", ""):
        assert client.post("/organization", {"organization": other}).status_code == 404
    assert client.get("/provider").status_code == 200


def test_empty_pages_say_what_to_do_next(mallory: Party, sign_in: SignIn, clock_at: object) -> None:
    client = sign_in(mallory)
    for path, hint in {
        "/buyer": "Top up",
        "/buyer/bid": "You have placed no bid yet",
        "/buyer/invoices": "No invoice yet",
        "/buyer/buy": "No grade is in force",
        "/provider": "You have no host yet",
        "/provider/ledger": "No account yet",
        "/market": "No grade is in force yet",
    }.items():
        assert hint in client.get(path).content.decode(), path


@pytest.mark.parametrize("cursor", ["", "x", "0" * 36, "%00"])
def test_a_bad_cursor_is_a_bad_request(mallory: Party, sign_in: SignIn, cursor: str) -> None:
    assert sign_in(mallory).get(f"/buyer/charges?before={cursor}").status_code == 400
