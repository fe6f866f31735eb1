"""What the portal's forms change, and what they say when they change nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.test import Client

from marketplace.accounts.models import ApiKey, AuditEntry
from marketplace.accounts.selectors import find_api_key
from marketplace.billing.models import TopUp
from marketplace.contracts.models import Contract, Quote
from marketplace.ids import uuid7
from marketplace.ledger.selectors import balance
from marketplace.orders.models import Bid
from pricing.models import Grade
from providers.models import Host
from tests.cast import PASSWORD, Party, Plant, fund
from tests.portal.conftest import SignIn


@pytest.fixture
def buyer(acme: Party, plant: Plant, clock_at: datetime, sign_in: SignIn) -> Client:
    fund(acme, 100_000_000, clock_at)
    return sign_in(acme)


def operation() -> str:
    return str(uuid7())


def available(party: Party) -> int:
    return balance(organization_id=party.id, kind="prepaid", currency="USD").available_micros


def test_sign_in_goes_where_one_wanted_and_never_elsewhere(acme: Party, clock_at: datetime) -> None:
    right = {"email": acme.user.email.upper(), "password": PASSWORD}
    for wanted, lands in {
        "": "/buyer",
        "/buyer/bid": "/buyer/bid",
        "https://evil.example/": "/buyer",
        "//evil.example": "/buyer",
    }.items():
        answer = Client().post("/signin", {**right, "next": wanted})
        assert (answer.status_code, answer["Location"]) == (302, lands)
    client = Client()
    for wrong in ({**right, "password": "guess"}, {"email": "nobody@example.org", "password": "x"}):
        answer = client.post("/signin", wrong)
        assert answer.status_code == 422
        assert "do not belong together" in answer.content.decode()
    assert client.get("/buyer").status_code == 302


def test_signing_out_ends_the_session(acme: Party, sign_in: SignIn, clock_at: datetime) -> None:
    client = sign_in(acme)
    assert client.get("/signout").status_code == 405
    assert client.post("/signout").status_code == 302
    assert client.get("/buyer").status_code == 302


def test_forms_without_a_csrf_cookie_are_refused(acme: Party, clock_at: datetime) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(acme.user)
    answer = client.post("/buyer/top-up", {"amount": "10", "operation": operation()})
    assert answer.status_code == 403
    assert not TopUp.objects.exists()


def test_topping_up_twice_with_one_form_moves_money_once(buyer: Client, acme: Party) -> None:
    before = available(acme)
    form = {"amount": "12.34", "operation": operation()}
    for _ in range(2):
        answer = buyer.post("/buyer/top-up", form)
        assert (answer.status_code, answer["Location"]) == (302, "/buyer")
    assert available(acme) - before == 12_340_000
    again = buyer.post("/buyer/top-up", {**form, "amount": "99"})
    assert again.status_code == 422
    assert "Send it again" in again.content.decode()
    assert available(acme) - before == 12_340_000


@pytest.mark.parametrize(
    "amount",
    ["", "0", "-1", "1e3", "NaN", "Infinity", "0.001", "1,5", "1 000", "9" * 19, "1000001", "١", "\x00"],
)
def test_a_bad_amount_is_named_at_its_field_and_changes_nothing(
    buyer: Client, acme: Party, amount: str
) -> None:
    before = available(acme)
    answer = buyer.post("/buyer/top-up", {"amount": amount, "operation": operation()})
    assert answer.status_code == 422
    assert "id_amount_error" in answer.content.decode()
    assert available(acme) == before


def quote_terms(good: Grade, /, **changes: object) -> dict[str, object]:
    return {
        "grade": good.family.slug,
        "firm_lots": "10",
        "volume_lots": "1000",
        "months": "1",
        "payment": "prepaid",
        "overage_policy": "list",
        "take_share": "0",
        **changes,
    }


def test_a_quote_is_bought_once(buyer: Client, acme: Party, grade: Grade) -> None:
    answer = buyer.post("/buyer/buy", quote_terms(grade))
    assert answer.status_code == 302, answer.content
    quote = Quote.objects.get()
    page = buyer.get(answer["Location"]).content.decode()
    # 1,000 lots are one Mtok at the firm rate of 0.50.
    assert "0.50\u00a0USD" in page
    assert "0.125" in page  # The plain price of a native input token's million: 0.50 x 0.25.
    form = {"operation": operation()}
    first = buyer.post(f"/buyer/quotes/{quote.id}", form)
    assert first.status_code == 302, first.content
    assert buyer.post(f"/buyer/quotes/{quote.id}", form)["Location"] == first["Location"]
    contract = Contract.objects.get(kind="committed")
    assert first["Location"] == f"/buyer/contracts/{contract.id}"
    assert AuditEntry.objects.filter(action="quote.accept", actor_id=acme.user.id).count() == 1
    refused = buyer.post(f"/buyer/quotes/{quote.id}", {"operation": operation()})
    assert refused.status_code == 422
    assert "accepted already" in refused.content.decode()
    assert Contract.objects.filter(kind="committed").count() == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grade", "gold"),
        ("firm_lots", "-1"),
        ("firm_lots", "1000000"),
        ("firm_lots", "1.5"),
        ("volume_lots", "999999999"),
        ("months", "13"),
        ("take_share", "101"),
        ("rollover_share", "101"),
        ("rollover_share", "-1"),
        ("rollover_cap", "-1"),
        ("rollover_cap", "x"),
        ("starts_at", "2020-01-01T00:00"),
        ("starts_at", "soon"),
    ],
)
def test_a_bad_quote_is_named_at_its_field(buyer: Client, grade: Grade, field: str, value: str) -> None:
    answer = buyer.post("/buyer/buy", quote_terms(grade, **{field: value}))
    assert answer.status_code == 422
    assert f"id_{field}_error" in answer.content.decode()
    assert not Quote.objects.exists()


def test_what_rolls_over_is_asked_for_shown_and_kept(buyer: Client, grade: Grade) -> None:
    asked = {"rollover_share": "12.5", "rollover_cap": "40"}
    page = buyer.post("/buyer/buy", quote_terms(grade, **asked), follow=True).content.decode()
    assert "12.5\u2009% of what is unused, at most 40 lots" in page
    quote = Quote.objects.get()
    assert (quote.rollover_share_ppm, quote.rollover_cap_lots) == (125_000, 40)
    without_cap = buyer.post("/buyer/buy", quote_terms(grade, rollover_share="5"))
    assert (without_cap.status_code, "id_rollover_cap_error" in without_cap.content.decode()) == (422, True)
    in_arrears = buyer.post("/buyer/buy", quote_terms(grade, payment="arrears", **asked))
    assert (in_arrears.status_code, "id_rollover_share_error" in in_arrears.content.decode()) == (422, True)


def test_a_quote_beyond_the_balance_says_so_and_takes_nothing(
    acme: Party, plant: Plant, grade: Grade, clock_at: datetime, sign_in: SignIn
) -> None:
    client = sign_in(acme)
    place = client.post("/buyer/buy", quote_terms(grade))["Location"]
    assert "does not cover the first month" in client.get(place).content.decode()
    answer = client.post(place, {"operation": operation()})
    assert answer.status_code == 422
    assert not Contract.objects.filter(kind="committed").exists()


def bid_terms(grade: Grade, **changes: object) -> dict[str, object]:
    return {
        "grade": grade.family.slug,
        "period_start": "",
        "rate_0": "0.45",
        "lots_0": "100",
        "rate_1": "0.30",
        "lots_1": "100",
        "operation": operation(),
        **changes,
    }


def test_a_bid_holds_its_worst_case_and_cancelling_gives_it_back(
    buyer: Client, acme: Party, grade: Grade
) -> None:
    before = available(acme)
    form = bid_terms(grade)
    fragment = buyer.post("/buyer/bid/worst-case", form).content.decode()
    assert "0.06\u00a0USD" in fragment  # max(0.45 x 0.1, 0.30 x 0.2) Mtok.
    for _ in range(2):
        assert buyer.post("/buyer/bid", form).status_code == 302
    other = buyer.post("/buyer/bid", {**form, "lots_0": "101"})
    assert other.status_code == 422
    assert "Send it again" in other.content.decode()
    bid = Bid.objects.get()
    assert bid.standing
    assert before - available(acme) == 60_000
    assert str(bid.id) in buyer.get("/buyer/bid").content.decode()
    assert buyer.post(f"/buyer/bids/{bid.id}/cancel").status_code == 302
    bid.refresh_from_db()
    assert bid.status == "cancelled"
    assert available(acme) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_0", ""),
        ("rate_0", "NaN"),
        ("rate_0", "5.000001"),
        ("rate_1", "0.46"),
        ("lots_0", "0"),
        ("lots_1", ""),
        ("lots_1", "1000000001"),
        ("min_fill_lots", "201"),
        ("daily_budget", "-1"),
        ("period_start", "2020-01-01T00:00:00+00:00"),
    ],
)
def test_a_bad_bid_is_named_at_its_field_and_holds_nothing(
    buyer: Client, acme: Party, grade: Grade, field: str, value: str
) -> None:
    before = available(acme)
    answer = buyer.post("/buyer/bid", bid_terms(grade, **{field: value}))
    assert answer.status_code == 422
    assert f"id_{field}_error" in answer.content.decode()
    assert not Bid.objects.exists()
    assert available(acme) == before


def test_an_api_key_is_shown_once_and_works_until_it_is_revoked(
    buyer: Client, acme: Party, mallory: Party, sign_in: SignIn, clock_at: datetime
) -> None:
    form = {"label": "chatbot", "scopes": ["read", "inference"], "expires_in_days": "30"}
    answer = buyer.post("/buyer/keys", form)
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    key = ApiKey.objects.get(organization_id=acme.id, label="chatbot")
    [secret] = [
        word
        for word in answer.content.decode().replace("<", " ").replace(">", " ").split()
        if word.startswith(f"ty_{key.key_id}_") and len(word) > 30
    ]
    found = find_api_key(secret, clock_at)
    assert found is not None
    assert (found.id, found.scopes) == (key.id, ["read", "inference"])
    assert key.expires_at == clock_at + timedelta(days=30)
    assert secret not in buyer.get("/buyer/keys").content.decode()
    assert sign_in(mallory).post(f"/buyer/keys/{key.id}/revoke").status_code == 404
    assert buyer.post(f"/buyer/keys/{key.id}/revoke").status_code == 302
    assert find_api_key(secret, clock_at) is None


@pytest.mark.parametrize(
    "changes", [{"scopes": []}, {"scopes": ["operate"]}, {"default_contract": str(UUID(int=7))}]
)
def test_a_key_never_gets_more_than_its_organization_may(
    buyer: Client, acme: Party, changes: dict[str, object]
) -> None:
    answer = buyer.post("/buyer/keys", {"label": "x", "scopes": ["read"], **changes})
    assert answer.status_code == 422
    assert not ApiKey.objects.filter(organization_id=acme.id, label="x").exists()


def test_a_provider_adds_a_host_and_gets_the_commands(
    hyperion: Party, clock_at: datetime, sign_in: SignIn
) -> None:
    client = sign_in(hyperion)
    answer = client.post("/provider/hosts/new", {"name": "gamma", "region": "eu", "site": ""})
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    shown = answer.content.decode()
    assert "python -m providers.agent enroll --url http://127.0.0.1:8000 --code tye_" in shown
    host = Host.objects.get(name="gamma")
    assert "tye_" not in client.get(f"/provider/hosts/{host.id}").content.decode()
    renewed = client.post(f"/provider/hosts/{host.id}/enrolment-code").content.decode()
    assert "tye_" in renewed
    assert host.enrolment_codes.count() == 1
    again = client.post("/provider/hosts/new", {"name": "gamma", "region": "eu", "site": ""})
    assert again.status_code == 422
    assert "id_name_error" in again.content.decode()


def test_a_provider_changes_his_three_prices(
    hyperion: Party, plant: Plant, clock_at: datetime, sign_in: SignIn
) -> None:
    client = sign_in(hyperion)
    place = f"/provider/offerings/{plant.offering.id}"
    assert (
        client.post(place, {"spot_floor": "0.21", "firm_rate": "0.5", "list_rate": "0.7"}).status_code == 302
    )
    plant.offering.refresh_from_db()
    assert plant.offering.spot_floor_micros_per_mtok == 210_000
    assert plant.offering.list_rate.micros_per_mtok == 700_000
    for field, value in {"spot_floor": "-1", "firm_rate": "0", "list_rate": "1000001"}.items():
        refused = client.post(
            place, {"spot_floor": "0.2", "firm_rate": "0.5", "list_rate": "0.7", field: value}
        )
        assert refused.status_code == 422, field
        assert f"id_{field}_error" in refused.content.decode()
    for move, status in {"pause": "paused", "resume": "listed", "withdraw": "withdrawn"}.items():
        assert client.post(f"{place}/status", {"move": move}).status_code == 302
        plant.offering.refresh_from_db()
        assert plant.offering.status == status
    assert (
        client.post(place, {"spot_floor": "0.2", "firm_rate": "0.5", "list_rate": "0.7"}).status_code == 404
    )


def test_the_operator_checks_the_ledger(buyer: Client, operator: Party, sign_in: SignIn) -> None:
    client = sign_in(operator)
    whole = client.post("/operator/ledger-check")
    assert "The books add up" in whole.content.decode()
    part = client.post("/operator/ledger-check", headers={"HX-Request": "true"})
    assert part.content.decode().strip().startswith('<div id="ledger-check"')
