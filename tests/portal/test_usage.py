"""The usage pages: what the filters show, where the files come from, and that names of others never appear."""

from __future__ import annotations

import csv
import io

from tests.cast import Party
from tests.portal.conftest import SignIn
from tests.portal.world import Day


def test_a_buyer_sees_his_usage_by_any_group_and_takes_it_along(
    day: Day, acme: Party, hyperion: Party, mallory: Party, sign_in: SignIn
) -> None:
    """One test, because making the day costs seconds."""
    client = sign_in(acme)
    since = f"since={day.now:%Y-%m-%d}&until={day.now:%Y-%m-%d}"
    for by in ("model", "grade", "contract", "api_key", "project", "host", "bucket"):
        shown = client.get(f"/buyer/usage?{since}&slice=hour&by={by}&buckets=on").content.decode()
        assert "<table>" in shown, by
        assert "Hyperion" not in shown
    assert "tiny-chat" in client.get(f"/buyer/usage?{since}&slice=day&by=model").content.decode()
    assert (
        "Nothing was metered"
        in client.get(f"/buyer/usage?{since}&slice=day&by=model&model=x").content.decode()
    )
    taken = client.get(f"/buyer/usage?{since}&slice=period&by=model&format=csv")
    rows = list(csv.DictReader(io.StringIO(taken.getvalue().decode())))
    assert {row["model"] for row in rows} == {"tiny-chat"}
    assert 'filename="usage-' in taken["Content-Disposition"]
    focus = list(csv.DictReader(io.StringIO(client.get(f"/buyer/focus?{since}").getvalue().decode())))
    assert {row["BillingAccountName"] for row in focus} == {"Acme"}
    # What is not a day, a range or a cursor is said, not guessed.
    wrong = client.get("/buyer/usage?since=2026-03-10&until=2026-03-01&slice=day&by=model")
    assert (wrong.status_code, "Must not lie before" in wrong.content.decode()) == (422, True)
    assert client.get(f"/buyer/usage?{since}&slice=week&by=model").status_code == 422
    assert client.get(f"/buyer/usage?{since}&slice=day&by=model&after=x").status_code == 400
    assert client.get("/buyer/focus?since=never").status_code == 400
    # The provider: by host, and nothing that tells who bought.
    provider = sign_in(hyperion)
    shown = provider.get(f"/provider/usage?{since}&slice=hour&by=host").content.decode()
    assert "alpha" in shown
    assert "Acme" not in shown
    assert provider.get(f"/provider/usage?{since}&slice=hour&by=project").status_code == 422
    earned = provider.get(f"/provider/focus?{since}").getvalue().decode()
    assert earned.count("\r\n") > 1
    assert str(day.on_demand.id) not in earned
    stranger = sign_in(mallory)
    assert "<table>" not in stranger.get(f"/buyer/usage?{since}&slice=day&by=contract").content.decode()
    assert stranger.get(f"/provider/focus?{since}").getvalue().decode().count("\r\n") == 1


def test_older_rows_are_a_link_away(day: Day, acme: Party, sign_in: SignIn) -> None:
    client = sign_in(acme)
    asked = (
        f"/buyer/usage?since={day.now:%Y-%m-%d}&until={day.now:%Y-%m-%d}&slice=period&by=contract&buckets=on"
    )
    page, seen = client.get(asked), 0
    while True:
        seen += page.content.decode().count("<tr><td><time")
        older = page.context["older"]
        if older is None:
            break
        page = client.get(f"{asked}&after={older}")
    whole = client.get(f"{asked}&format=csv").getvalue().decode()
    assert seen == whole.count("\r\n") - 1 > 25
