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
from pricing.models import Grade
from tests.cast import PASSWORD, Party, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
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
    with serve(committed_db.environment, tmp_path) as running:
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
