"""Pages about meters that disagree: what they show to whom, what their buttons do; and estimates, called so."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client

from marketplace.accounts.models import AuditEntry
from marketplace.billing.models import Charge
from marketplace.portal import figures
from metering.models import Discrepancy, Reconciliation
from tests.cast import Party
from tests.portal.conftest import SignIn
from tests.portal.world import Day


def shown(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_provider_accepts_the_lower_count_and_must_say_why(
    day: Day, hyperion: Party, sign_in: SignIn
) -> None:
    client = sign_in(hyperion)
    listed = shown(client, "/provider/discrepancies")
    assert "Accept the lower count" in listed
    assert f"<dd>{day.plant.host.name}</dd>" in listed
    assert "Counts of the three witnesses" in listed
    path = f"/provider/discrepancies/{day.discrepancy.id}/accept"
    answer = client.post(path, {"reason": " "}, follow=True)
    assert "Reason must have 1 to 500 characters." in answer.content.decode()
    assert Discrepancy.objects.get().status == "open"
    answer = client.post(path, {"reason": "Our driver counted twice."}, follow=True)
    page = answer.content.decode()
    assert "The lower count stands" in page
    assert "Our driver counted twice." in page
    assert "Accept the lower count" not in page
    found = Discrepancy.objects.get()
    assert (found.status, found.ruling, found.closed_by) == ("accepted", "lower", "provider")
    entry = AuditEntry.objects.get(action="discrepancy.accepted")
    assert (entry.organization_id, entry.actor_id) == (hyperion.id, hyperion.user.id)
    assert "was closed before" in client.post(path, {"reason": "Again."}, follow=True).content.decode()


@pytest.mark.parametrize(
    ("ruling", "status"), [("higher", "resolved"), ("lower", "resolved"), ("mine", "open")]
)
def test_the_operator_rules(day: Day, operator: Party, sign_in: SignIn, ruling: str, status: str) -> None:
    client = sign_in(operator)
    assert "Rule on them" in shown(client, "/operator")
    path = f"/operator/discrepancies/{day.discrepancy.id}/resolve"
    client.post(path, {"ruling": ruling, "reason": "The engine's log."}, follow=True)
    assert Discrepancy.objects.get().status == status
    assert ("The engine&#x27;s log." in shown(client, "/operator/discrepancies")) == (status == "resolved")


def test_a_buyer_sees_his_counts_and_not_the_hosts(day: Day, acme: Party, sign_in: SignIn) -> None:
    page = shown(sign_in(acme), "/buyer/discrepancies")
    assert str(day.on_demand.id) in page
    assert str(day.plant.host.id) not in page
    assert f"<dd>{day.plant.host.name}</dd>" not in page
    assert "What each witness saw" not in page


def test_viewers_see_no_buttons(day: Day, hyperion: Party, viewer_of: object) -> None:
    assert callable(viewer_of)
    viewer: Client = viewer_of(hyperion)
    assert "Accept the lower count</button>" not in shown(viewer, "/provider/discrepancies")
    path = f"/provider/discrepancies/{day.discrepancy.id}/accept"
    assert viewer.post(path, {"reason": "x"}).status_code == 403
    assert Discrepancy.objects.get().status == "open"


def test_every_providers_reconciled_share_is_public(day: Day, hyperion: Party) -> None:
    """The day has no agent: nothing of it was reconciled. Then one more hour, three times as large, agrees."""
    page = shown(Client(), "/providers")
    assert "Hyperion" in page
    assert "<b>0\u2009%</b>" in page
    settled = sum(row.gateway_numerator for row in Reconciliation.objects.all())
    assert settled > 0
    Reconciliation.objects.create(
        host_id=day.plant.host.id,
        settlement_start=day.now - timedelta(days=2),
        outcome="agreed",
        gateway_numerator=3 * settled,
        agent_numerator=3 * settled,
        usage_digest=1,
        reconciled_at=day.now,
    )
    assert "<b>75\u2009%</b>" in shown(Client(), "/providers")
    [row] = Client().get("/api/v1/providers").json()["items"]
    assert (row["display_name"], row["reconciliation_ppm"]) == ("Hyperion", 750_000)
    assert row["settled_numerator"] == str(4 * settled)
    assert row["grades"] == ["Tiny chat"]


def test_an_estimated_charge_is_called_so_until_it_is_replaced(
    day: Day, acme: Party, sign_in: SignIn
) -> None:
    client = sign_in(acme)
    path = f"/buyer/charges/{day.charge.id}"
    assert "stimated" not in shown(client, path)
    copied = {
        field.name: getattr(day.charge, field.name)
        for field in Charge._meta.concrete_fields
        if field.name != "id"
    }
    late = Charge.objects.create(**{**copied, "id": day.bid.id, "estimated_numerator": 5_000_000_000})
    assert "estimated</span>" in shown(client, "/buyer/charges")
    assert f"Estimated: no meter has reported {figures.standard_tokens(5_000_000_000)} of" in shown(
        client, f"/buyer/charges/{late.id}"
    )
    Charge.objects.create(
        **{**copied, "id": day.quote.id, "kind": "adjustment", "estimated_numerator": -5_000_000_000}
    )
    assert "estimated</span>" not in shown(client, "/buyer/charges")
    assert "were estimated; actual counts have replaced them" in shown(client, f"/buyer/charges/{late.id}")
