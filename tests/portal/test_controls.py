"""The operator's pages of the spot markets: what they show, what their forms do, who may."""

from __future__ import annotations

from datetime import timedelta

from django.test import Client

from marketplace.accounts.models import AuditEntry
from marketplace.orders.models import CapReview, MarketControl, MarketControlChange
from tests.cast import Party
from tests.portal.conftest import SignIn
from tests.portal.world import Day

PAGE = "/operator/controls/tiny-chat"


def test_the_operator_halts_sets_the_rate_and_resumes(day: Day, operator: Party, sign_in: SignIn) -> None:
    client = sign_in(operator)
    assert "Tiny chat" in client.get("/operator/controls").content.decode()
    refused = client.post(f"{PAGE}/halt", {"reason": ""})
    assert (refused.status_code, MarketControl.objects.get().status) == (422, "normal")
    page = client.post(f"{PAGE}/halt", {"reason": "A <b>meter</b> fails."}, follow=True).content.decode()
    assert "Gates pass without trades." in page
    assert "A &lt;b&gt;meter&lt;/b&gt; fails." in page
    assert "normal → halted" in page
    entry = AuditEntry.objects.get(action="market.halt")
    assert (entry.organization_id, entry.actor_id) == (operator.id, operator.user.id)
    again = client.post(f"{PAGE}/halt", {"reason": "Again."})
    assert "halted already" in again.content.decode()
    client.post(f"{PAGE}/rate", {"rate": "0.31", "reason": "Ruled."}, follow=True)
    control = MarketControl.objects.get()
    assert (control.status, control.administered_rate_micros_per_mtok) == ("halted", 310_000)
    wrong = client.post(f"{PAGE}/rate", {"rate": "x", "reason": "Ruled."})
    assert (wrong.status_code, "aria-invalid" in wrong.content.decode()) == (422, True)
    client.post(f"{PAGE}/resume", {"reason": "Mended."}, follow=True)
    assert MarketControl.objects.get().status == "normal"
    assert MarketControlChange.objects.count() == 3


def test_the_operator_schedules_a_cap_and_takes_it_back(day: Day, operator: Party, sign_in: SignIn) -> None:
    client = sign_in(operator)
    soon = {"cap": "6", "effective_from": (day.now + timedelta(days=3)).date(), "reason": "Dearer."}
    assert "28 days ahead" in client.post(f"{PAGE}/cap", soon).content.decode()
    later = {**soon, "effective_from": (day.now + timedelta(days=30)).date()}
    assert "The cap is scheduled." in client.post(f"{PAGE}/cap", later, follow=True).content.decode()
    review = CapReview.objects.get()
    assert review.cap_micros_per_mtok == 6_000_000
    path = f"/operator/cap-reviews/{review.id}/decline"
    assert "Reason must have" in client.post(path, {"reason": ""}, follow=True).content.decode()
    page = client.post(path, {"reason": "Not yet."}, follow=True).content.decode()
    assert "Declined: the cap stays as it is." in page
    assert CapReview.objects.get().status == "declined"
    assert "was declined before" in client.post(path, {"reason": "Again."}, follow=True).content.decode()


def test_a_viewer_sees_no_forms(day: Day, operator: Party, viewer_of: object) -> None:
    assert callable(viewer_of)
    viewer: Client = viewer_of(operator)
    assert "Halt trading" not in viewer.get(PAGE).content.decode()
    assert viewer.post(f"{PAGE}/halt", {"reason": "x"}).status_code == 403
    assert not MarketControlChange.objects.exists()
