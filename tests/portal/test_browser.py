"""The portal in a real browser: Debian's chromium, a real server, the real style sheet and scripts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright
from pytest_django import Settings

from marketplace import clock
from marketplace.contracts.models import Contract
from marketplace.orders.models import Auction
from marketplace.periods import delivery_period
from marketplace.portal import figures
from pricing.models import Grade
from tests.cast import PASSWORD, Party, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.orders.world import bid_of, run_round
from tests.portal.server import PortalServer, serve

CHROMIUM = shutil.which("chromium")
PHONE = ViewportSize(width=390, height=844)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not on the PATH: apt-get install chromium runs these tests"
    ),
]


@pytest.fixture
def market(committed_db: TestDatabase, settings: Settings) -> tuple[Party, Party, Grade]:
    """Acme with money, hyperion with a host; made at the real time, because the browser's server lives in it."""
    # The server is another process, with the real hashers.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    now = clock.now()
    make_party("Operator", ["operator"], now)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    make_plant(hyperion, grade, now)
    fund(acme, 50_000_000, now)
    return acme, hyperion, grade


@pytest.fixture
def server(market: object, committed_db: TestDatabase, tmp_path: Path) -> Iterator[PortalServer]:
    # Streams that end soon, so that the server stops at once at the end; the browser opens them again.
    with serve({**committed_db.environment, "MARKET_STREAM_S": "3"}, tmp_path) as running:
        yield running


@pytest.fixture
def server_without_streams(
    market: object, committed_db: TestDatabase, tmp_path: Path
) -> Iterator[PortalServer]:
    with serve({**committed_db.environment, "MARKET_STREAMS_MAX": "0"}, tmp_path) as running:
        yield running


@pytest.fixture
def browser() -> Iterator[Browser]:
    # Playwright's loop runs in this thread; Django would refuse the ORM beside it.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    arguments = ["--disable-gpu", "--disable-background-networking"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    try:
        with sync_playwright() as playwright:
            launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
            yield launched
            launched.close()
    finally:
        if before is None:
            del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
        else:
            os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = before


def sign_in(page: Page, server: PortalServer, party: Party) -> None:
    page.goto(f"{server.url}/signin")
    page.get_by_label("E-mail").fill(party.user.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()


def test_a_buyer_signs_in_buys_bids_and_finds_both(
    browser: Browser, server: PortalServer, market: tuple[Party, Party, Grade]
) -> None:
    acme, _, _ = market
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    sign_in(page, server, acme)
    expect(page.get_by_role("heading", name="Acme")).to_be_visible()
    page.get_by_role("link", name="Buy capacity").click()
    page.get_by_label("Firm quantity per delivery period").fill("10")
    page.get_by_label("Volume per month").fill("1000")
    page.get_by_role("button", name="Get a quote").click()
    expect(page.get_by_role("heading", name="Quote for Tiny chat")).to_be_visible()
    page.get_by_role("button", name="Accept and buy").click()
    expect(page.get_by_role("status")).to_contain_text("The contract stands")
    page.get_by_role("link", name="Bid").click()
    page.get_by_label("Rate, USD per Mtok").first.fill("0.5")
    page.get_by_label("Lots").first.fill("200")
    # htmx asks while typing: 0.5 x 0.2 Mtok.
    expect(page.locator("#worst-case")).to_contain_text("0.10")
    page.get_by_role("button", name="Place the bid").click()
    expect(page.get_by_role("status")).to_contain_text("The bid stands until you cancel it")
    page.get_by_role("button", name="Cancel the bid").click()
    expect(page.get_by_role("status")).to_contain_text("The bid is cancelled")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in", exact=True)).to_be_visible()
    assert complaints == [], "the security policy or a script complained"
    assert Contract.objects.filter(organization_id=acme.id, kind="committed").count() == 1


def publish_a_round(acme: Party, hyperion: Party, grade: Grade) -> Auction:
    """The next round, moved through at times to come: acme takes 200 of what another host asks at 0.20."""
    now = clock.now()
    plant = make_plant(hyperion, grade, now, name="beta")
    bid_of(acme, now, steps=((450_000, 200),))
    return run_round(plant, delivery_period(now).end)


@pytest.mark.parametrize("path", ["/", "/market/tiny-chat"])
def test_a_published_price_appears_without_a_reload_and_is_said(
    browser: Browser, server: PortalServer, market: tuple[Party, Party, Grade], path: str
) -> None:
    acme, hyperion, grade = market
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{server.url}{path}")
    expect(page.locator("#live-state")).to_contain_text("Live")
    # What the page reads anew now and then never arrives: what changes it is the stream.
    page.route("**/*", lambda route: None if "hx-request" in route.request.headers else route.continue_())
    page.evaluate("window.isTheSamePage = true")
    board = page.locator("[data-grade=tiny-chat]")
    expect(board.locator(".price")).to_contain_text("0.60")
    expect(page.locator("#live-said")).to_have_text("")
    auction = publish_a_round(acme, hyperion, grade)
    assert (auction.clearing_rate_micros_per_mtok, auction.quantity_lots) == (200_000, 200)
    expect(board.locator(".price")).to_have_text("0.20 USD per Mtok")
    expect(board.locator("[data-live=basis]")).to_contain_text("last clearing rate")
    expect(board.locator("[data-live=basis] time")).to_have_text(figures.day_time(auction.period_start))
    said = page.get_by_role("status")
    expect(said).to_have_text(f"Tiny chat: 0.20 USD per Mtok, for {figures.day_time(auction.period_start)}")
    assert page.evaluate("window.isTheSamePage")
    # The rest of the board follows, once it may.
    page.unroute("**/*")
    expect(board).to_contain_text("200 lots", timeout=20_000)
    expect(board.locator(".price")).to_have_text("0.20 USD per Mtok")
    assert page.evaluate("window.isTheSamePage")
    assert complaints == []
    page.close()


def test_without_a_free_stream_or_script_the_page_still_shows_prices(
    browser: Browser, server_without_streams: PortalServer, market: tuple[Party, Party, Grade]
) -> None:
    acme, hyperion, grade = market
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server_without_streams.url)
    expect(page.locator("#live-state")).to_have_text("Prices are read anew every 10 seconds.")
    publish_a_round(acme, hyperion, grade)
    expect(page.locator("[data-grade=tiny-chat] .price")).to_have_text("0.20 USD per Mtok", timeout=20_000)
    assert errors == []
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(server_without_streams.url)
    expect(plain.locator("[data-grade=tiny-chat] .price")).to_have_text("0.20 USD per Mtok")
    expect(plain.locator("#live-state")).to_be_hidden()


def test_the_keyboard_reaches_everything_and_focus_can_be_seen(
    browser: Browser, server: PortalServer, market: tuple[Party, Party, Grade]
) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.goto(f"{server.url}/signin")
    page.get_by_label("E-mail").focus()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.type(market[0].user.email)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Tab")
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Acme")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(
    browser: Browser, server: PortalServer, market: tuple[Party, Party, Grade], scheme: str
) -> None:
    acme, hyperion, _ = market
    pages = {
        acme: (
            "/",
            "/market/tiny-chat",
            "/buyer",
            "/buyer/top-up",
            "/buyer/buy",
            "/buyer/bid",
            "/buyer/cover",
            "/buyer/keys",
            "/buyer/spend-caps",
            "/buyer/auto-top-up",
        ),
        hyperion: ("/provider", "/provider/hosts/new", "/provider/earnings"),
    }
    for party, paths in pages.items():
        context = browser.new_context(viewport=PHONE, color_scheme="dark" if scheme == "dark" else "light")
        page = context.new_page()
        sign_in(page, server, party)
        expect(page.get_by_role("button", name="Sign out")).to_be_visible()
        for path in paths:
            page.goto(f"{server.url}{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(","))
        assert (brightness < 200) == (scheme == "dark")
        context.close()
