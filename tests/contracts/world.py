"""What the tests of contracts and gateway stand on: a buyer with money, a grade, a plant, on any database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.accounts.services import Actor
from marketplace.contracts.holds import Opened
from marketplace.contracts.models import Contract
from marketplace.contracts.services import accept_quote, open_hold, request_quote
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from pricing.models import Grade
from tests.cast import Party, Plant, make_grade, make_party, make_plant

LOT = 10**9
# The cast's grade: 0.25 standard tokens per native input token, 1.0 per output token.
INPUT_PPM = 250_000
OUTPUT_PPM = 1_000_000


@dataclass(frozen=True)
class World:
    operator: Party
    acme: Party
    hyperion: Party
    grade: Grade
    plant: Plant


def make_world(now: datetime, *, list_rate: int = 600_000, base_url: str = "http://127.0.0.1:9") -> World:
    operator = make_party("Operator", ["operator"], now)
    acme = make_party("Acme", ["buyer"], now)
    hyperion = make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now, list_rate=list_rate, base_url=base_url)
    return World(operator, acme, hyperion, grade, plant)


def give_money(
    world: World, amount_micros: int, now: datetime, *, kind: AccountKind = AccountKind.PREPAID
) -> None:
    processor = account_id(
        organization_id=world.operator.id, kind=AccountKind.PROCESSOR, currency="USD", now=now
    )
    prepaid = account_id(organization_id=world.acme.id, kind=kind, currency="USD", now=now)
    post_transfers([NewTransfer(uuid7(), processor, prepaid, amount_micros, "top_up")], now=now)


def available(world: World) -> int:
    return balance(organization_id=world.acme.id, kind=AccountKind.PREPAID, currency="USD").available_micros


def ask(
    world: World,
    numerator: int,
    now: datetime,
    *,
    contract_id: UUID | None = None,
    exclude: tuple[UUID, ...] = (),
) -> tuple[UUID, Opened]:
    hold_id = uuid7(now)
    opened = open_hold(
        id=hold_id,
        organization_id=world.acme.id,
        grade_ids=[world.grade.id],
        numerators=[numerator],
        contract_id=contract_id,
        exclude=exclude,
        now=now,
    )
    return hold_id, opened


def commit(
    world: World,
    now: datetime,
    *,
    firm_lots: int = 10,
    volume_lots: int = 100,
    overage_policy: str = "stop",
    payment: str = "prepaid",
    take_share_ppm: int = 1_000_000,
    max_rate_micros_per_mtok: int | None = None,
) -> Contract:
    quote = request_quote(
        organization_id=world.acme.id,
        grade_slug="tiny-chat",
        firm_lots=firm_lots,
        volume_lots=volume_lots,
        months=1,
        starts_at=None,
        take_share_ppm=take_share_ppm,
        overage_policy=overage_policy,
        payment=payment,
        max_rate_micros_per_mtok=max_rate_micros_per_mtok,
        now=now,
    )
    return accept_quote(
        organization_id=world.acme.id,
        quote_id=quote.id,
        operation_id=uuid7(),
        now=now,
        actor=Actor("api_key", world.acme.api_key_id),
    )
