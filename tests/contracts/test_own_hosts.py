"""An organization that buys and provides: no grant becomes its own earnings."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from marketplace.contracts.holds import Opened, open_part
from marketplace.contracts.models import Hold, Quote
from marketplace.contracts.quoting import NotOffered
from marketplace.contracts.services import open_hold, request_quote
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance, check_ledger
from marketplace.ledger.services import account_id, set_overdraft_limit
from providers.models import Host
from providers.services import record_heartbeat
from tests.cast import Party, make_grade, make_party, make_plant
from tests.contracts.world import LOT, World, commit, give_money


@pytest.fixture
def both(db: None, now: datetime) -> World:
    """acme is also the provider of the cheapest host; it has a grant and no money."""
    operator = make_party("Operator", ["operator"], now)
    acme = make_party("Acme", ["buyer", "provider"], now)
    grade = make_grade(now)
    own = make_plant(acme, grade, now, list_rate=100_000, firm_rate=100_000)
    return World(operator, acme, acme, grade, own)


def other_plant(world: World, now: datetime) -> Party:
    other = make_party("Hyperion", ["provider"], now)
    make_plant(other, world.grade, now, list_rate=600_000, firm_rate=500_000)
    return other


def give(world: World, amount_micros: int, now: datetime) -> None:
    give_grant(
        id=uuid7(now),
        organization_id=world.acme.id,
        terms=GrantTerms(
            kind="granted", amount_micros=amount_micros, currency="USD", expires_at=now + timedelta(days=30)
        ),
        now=now,
    )


def ask(world: World, now: datetime, numerator: int = LOT, *, contract_id: UUID | None = None) -> Opened:
    return open_hold(
        id=uuid7(now),
        organization_id=world.acme.id,
        grade_ids=[world.grade.id],
        numerators=[numerator],
        contract_id=contract_id,
        now=now,
    )


def beat(at: datetime) -> None:
    for host in Host.objects.all():
        record_heartbeat(
            host_id=host.id, boot_id="boot-1", ready=True, in_flight=0, registers={}, energy_millijoules=None,
            now=at,
        )  # fmt: skip


def test_a_grant_is_never_burned_on_ones_own_host(both: World, now: datetime) -> None:
    give(both, 10_000, now)
    assert ask(both, now).outcome == "no_offering"
    assert not Hold.objects.exists()
    other = other_plant(both, now)
    served = ask(both, now)
    # Six times as dear as its own, and the only one that may serve.
    assert (served.outcome, served.amount_micros) == ("ok", 600)
    assert Hold.objects.get().offering.host.provider.organization_id == other.id
    assert balance(organization_id=both.acme.id, kind=AccountKind.PAYABLE, currency="USD").posted_micros == 0
    assert check_ledger() == []


def test_overage_of_a_committed_month_is_not_served_by_ones_own_host(both: World, now: datetime) -> None:
    give_money(both, 10**9, now)
    contract = commit(both, now, firm_lots=10, volume_lots=1, overage_policy="list")
    give(both, 10_000, now)
    at = contract.starts_at
    beat(at)
    # More than the month has left, so it is overage at list price.
    assert ask(both, at, 2 * LOT, contract_id=contract.id).outcome == "no_offering"
    assert not Hold.objects.exists()
    other_plant(both, at)
    served = ask(both, at, 2 * LOT, contract_id=contract.id)
    assert (served.outcome, served.kind, served.amount_micros) == ("ok", "on_demand", 1_200)


def test_a_request_on_ones_own_host_does_not_go_on_there_beyond_the_contract(
    both: World, now: datetime
) -> None:
    give_money(both, 10**9, now)
    contract = commit(both, now, firm_lots=10, volume_lots=1, overage_policy="list")
    at = contract.starts_at
    beat(at)
    hold_id = uuid7(at)
    first = open_hold(
        id=hold_id,
        organization_id=both.acme.id,
        grade_ids=[both.grade.id],
        numerators=[LOT],
        contract_id=contract.id,
        now=at,
    )
    assert first.outcome == "ok"
    over = open_part(hold_id=hold_id, id=uuid7(at), amount_numerator=LOT, now=at)
    assert over.outcome == "contract_exhausted"


@pytest.mark.parametrize(("payment", "offered"), [("prepaid", 1), ("arrears", 0)])
def test_a_quote_in_arrears_is_not_filled_by_ones_own_host(
    both: World, now: datetime, payment: str, offered: int
) -> None:
    """Grants pay usage in arrears, and never a prepaid month."""

    def quote() -> Quote:
        return request_quote(
            organization_id=both.acme.id, grade_slug="tiny-chat", firm_lots=10, volume_lots=100, months=1,
            starts_at=None, take_share_ppm=0, overage_policy="stop", payment=payment, now=now,
        )  # fmt: skip

    if offered:
        assert quote().rate_micros_per_mtok == 100_000
    else:
        with pytest.raises(NotOffered):
            quote()
    other_plant(both, now)
    assert quote().rate_micros_per_mtok == (100_000 if offered else 500_000)


def test_ones_own_cheap_host_is_no_reason_to_leave_a_contract_for_list_prices(
    both: World, now: datetime
) -> None:
    """Above its take a contract in arrears gives way to a cheaper list rate, of those that may serve."""
    other = other_plant(both, now)
    assert other.id != both.acme.id
    line = account_id(organization_id=both.acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=line, limit_micros=10**9)
    give_money(both, 10**9, now)
    contract = commit(both, now, payment="arrears", take_share_ppm=0)
    beat(contract.starts_at)
    served = ask(both, contract.starts_at)
    assert (served.outcome, served.kind, served.rate_micros_per_mtok) == ("ok", "committed", 500_000)
