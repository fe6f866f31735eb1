"""Ordinary contracts of one settlement period squared up together: what is read and written is so for all of them.

A batch writes what `settle_contract` would have written for each, and leaves to it whatever is not ordinary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F

from marketplace.billing.lines import Line
from marketplace.billing.models import Charge, Earning, Settlement
from marketplace.billing.selectors import Due, Metered, digest_of, metered_usages
from marketplace.billing.services.books import books_of_many, pays_in_arrears
from marketplace.billing.services.identity import id_at
from marketplace.billing.services.period_lines import Sources, lines_of_run
from marketplace.billing.services.posting import Movement, rows_of_lines, sellers_of, transfers_of
from marketplace.billing.services.setting_aside import tax_hold_id, tax_shares
from marketplace.billing.services.taxes import levies_of
from marketplace.contracts.models import Accrual, Contract, ContractKind
from marketplace.isolating import failing_keys
from marketplace.ledger.models import AccountKind, GrantPart, Hold, LedgerAccount
from marketplace.ledger.services import NewHold, close_holds, lock_books, open_holds, post_transfers
from marketplace.periods import Period, settlement_period
from pricing.models import Rate, RateTariff, ServiceLevel

logger = logging.getLogger(__name__)

# Bound of one transaction: how long it holds the market's accounts, and how much it keeps in memory.
CONTRACTS_AT_ONCE: Final = 1_000
JOB: Final = "billing.settle"


@dataclass(frozen=True, slots=True)
class SettledContract:
    contract_id: UUID
    settlement_start: datetime
    run: int
    charges: int
    amount_micros: int


@dataclass(frozen=True, slots=True)
class Together:
    """What became of contracts that were due: settled now, left to be settled singly, or another worker's.

    One that is in neither of them was settled before, and nothing of it is new.
    """

    settled: list[SettledContract] = field(default_factory=list)
    singly: list[Due] = field(default_factory=list)
    taken: list[Due] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is read of all contracts of a batch at once, behind the locks of contracts and accruals."""

    accruals: Mapping[UUID, Accrual]
    holds: Mapping[UUID, Hold]
    metered: Mapping[UUID, list[Metered]]
    rates: Mapping[UUID, Rate]
    # By contract, the digest of the usage that the last run of the period saw.
    settled_digests: Mapping[UUID, int]
    # Rates that are priced by a calendar month's volume.
    tiered: frozenset[UUID]
    grades_with_levels: frozenset[UUID]
    holds_with_grants: frozenset[UUID]
    owing: frozenset[UUID]
    currency: str
    # Buyers whose credit line was lowered below what is used of it.
    lowered: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Case:
    """One contract's first run of the period, worked out and not written."""

    contract: Contract
    settlement: Settlement
    hold: Hold
    lines: list[Line]
    tax: dict[UUID, int]

    @property
    def amount_micros(self) -> int:
        return sum(line.amount_micros for line in self.lines)


def job_key(item: Due) -> str:
    """What a contract and period is called among the items that fail (`isolating`)."""
    return f"{item.contract_id} {item.settlement_start.isoformat()}"


def batches_of(due: Sequence[Due]) -> Iterator[list[Due]]:
    """In order: each of one settlement period, in which a contract is due once, and bounded."""
    for _, items in groupby(due, key=lambda item: item.settlement_start):
        of_period = list(items)
        for start in range(0, len(of_period), CONTRACTS_AT_ONCE):
            yield of_period[start : start + CONTRACTS_AT_ONCE]


def settle_together(due: Sequence[Due], *, now: datetime) -> Together:
    """Settle those of one batch that are ordinary, in one transaction with a constant number of statements.

    Several workers share the contracts: one that is another's at the moment is passed over (`SKIP LOCKED`). What failed
    at its last try is left to be settled singly, and all of them are where the batch fails: one poisoned contract
    keeps no other waiting.
    """
    failing = failing_keys(JOB) if due else set()
    sound = [item for item in due if job_key(item) not in failing]
    if not sound:
        return Together(singly=list(due))
    try:
        found = _settle_batch(sound, now)
    except Exception:
        # Also where a database has gone: who settles singly finds that out.
        logger.exception("contracts not settled together", extra={"contracts": len(sound)})
        return Together(singly=list(due))
    left = {item.contract_id for item in found.singly} | {
        item.contract_id for item in due if job_key(item) in failing
    }
    # In the order in which they were due.
    return Together(found.settled, [item for item in due if item.contract_id in left], found.taken)


@transaction.atomic
def _settle_batch(due: Sequence[Due], now: datetime) -> Together:
    period = settlement_period(due[0].settlement_start)
    on_demand = set(
        Contract.objects.filter(
            id__in=[item.contract_id for item in due], kind=ContractKind.ON_DEMAND
        ).values_list("id", flat=True)
    )
    claimed = Contract.objects.filter(id__in=on_demand).select_related("organization").order_by("id")
    contracts = list(claimed.select_for_update(of=("self",), no_key=True, skip_locked=True))
    if not contracts:
        return Together(
            singly=[item for item in due if item.contract_id not in on_demand],
            taken=[item for item in due if item.contract_id in on_demand],
        )
    facts = _facts(contracts, period)
    done = {contract.id for contract in contracts if _is_settled(contract, facts)}
    plain = [one for one in contracts if one.id not in done and is_ordinary(one, facts)]
    cases = [case for case in _cases(plain, facts, period, now) if is_covered(case, facts)]
    if cases:
        _write(cases, now)
    settled = [
        SettledContract(one.contract.id, period.start, 1, len(one.lines), one.amount_micros) for one in cases
    ]
    here = {contract.id for contract in contracts}
    left = here - done - {one.contract_id for one in settled}
    return Together(
        settled=settled,
        singly=[item for item in due if item.contract_id in left or item.contract_id not in on_demand],
        taken=[item for item in due if item.contract_id in on_demand and item.contract_id not in here],
    )


def is_ordinary(contract: Contract, facts: Facts) -> bool:
    """Whether a locked on-demand contract has nothing to square up but a first run of usage that its accrual holds.

    No dispute is waiting, no grants are drawn, no service was measured, nothing is owed, no month of tiers counts it.
    """
    accrual = facts.accruals.get(contract.id)
    hold = facts.holds.get(accrual.ledger_hold_id) if accrual else None
    metered = facts.metered[contract.id]
    return (
        contract.id not in facts.settled_digests
        and hold is not None
        and hold.status == Hold.Status.OPEN
        and hold.id not in facts.holds_with_grants
        and contract.currency == facts.currency
        and contract.id not in facts.owing
        and not (pays_in_arrears(contract) and contract.organization_id in facts.lowered)
        and not any(
            item.waiting or item.grade_id in facts.grades_with_levels or item.rate_id in facts.tiered
            for item in metered
        )
    )


def is_covered(case: Case, facts: Facts) -> bool:
    """Whether the accrual pays for the lines and their tax, whatever else the buyer's balance is asked for meanwhile.

    If so, neither can be refused, and the order in which a buyer's contracts are settled makes no difference.
    """
    captured = facts.accruals[case.contract.id].captured_micros
    left = case.hold.amount_micros - case.hold.captured_micros - case.amount_micros
    return (
        all(line.amount_micros >= 0 for line in case.lines)
        and case.amount_micros <= captured
        and sum(case.tax.values()) <= left
    )


def _is_settled(contract: Contract, facts: Facts) -> bool:
    """An earlier run has seen all of it: another worker's, since it was found to be due."""
    accrual = facts.accruals.get(contract.id)
    hold = facts.holds.get(accrual.ledger_hold_id) if accrual else None
    is_held = hold is not None and hold.status == Hold.Status.OPEN
    return not is_held and facts.settled_digests.get(contract.id) == digest_of(facts.metered[contract.id])


def _facts(contracts: Sequence[Contract], period: Period) -> Facts:
    ids = [contract.id for contract in contracts]
    # In id order, so that no late capture slips in between.
    accruals = list(
        Accrual.objects.select_for_update()
        .filter(contract_id__in=ids, settlement_start=period.start)
        .order_by("id")
    )
    hold_ids = [accrual.ledger_hold_id for accrual in accruals]
    metered = metered_usages(ids, period.start, period.end)
    used = [item for of_contract in metered.values() for item in of_contract]
    latest = Settlement.objects.filter(contract_id__in=ids, settlement_start=period.start)
    digests = latest.order_by("contract_id", "-run").distinct("contract_id")
    levels = ServiceLevel.objects.filter(grade_id__in={item.grade_id for item in used})
    tiered = RateTariff.objects.filter(pk__in={item.rate_id for item in used})
    receivable = LedgerAccount.objects.filter(kind=AccountKind.RECEIVABLE)
    owing = receivable.filter(
        reference_id__in=ids, debits_posted_micros__gt=F("credits_posted_micros")
    ).values_list("reference_id", flat=True)
    lowered = receivable.filter(
        organization_id__in={contract.organization_id for contract in contracts},
        overdraft_limit_micros__gt=F("credit_line_micros"),
    ).values_list("organization_id", flat=True)
    return Facts(
        accruals={accrual.contract_id: accrual for accrual in accruals},
        holds=Hold.objects.in_bulk(hold_ids),
        metered=metered,
        rates=Rate.objects.in_bulk({item.rate_id for item in used}),
        settled_digests=dict(digests.values_list("contract_id", "usage_digest")),
        tiered=frozenset(tiered.values_list("pk", flat=True)),
        grades_with_levels=frozenset(levels.values_list("grade_id", flat=True)),
        holds_with_grants=frozenset(
            GrantPart.objects.filter(hold_id__in=hold_ids).values_list("hold_id", flat=True)
        ),
        owing=frozenset(found for found in owing if found is not None),
        currency=contracts[0].currency,
        lowered=frozenset(lowered),
    )


def _cases(contracts: Sequence[Contract], facts: Facts, period: Period, now: datetime) -> list[Case]:
    drawn = [
        (contract, settlement, lines_of_run(settlement, sources, metered, fee_ppm=settings.MARKET_FEE_PPM))
        for contract in contracts
        for metered in [facts.metered[contract.id]]
        for settlement in [_first_run(contract, period, metered, now)]
        for sources in [_sources(contract, period, facts)]
    ]
    keys = {key for _, _, lines in drawn for line in lines for key in line.shares}
    levies = levies_of([contract.organization for contract in contracts], keys)
    return [
        Case(
            contract=contract,
            settlement=settlement,
            hold=facts.holds[facts.accruals[contract.id].ledger_hold_id],
            lines=lines,
            tax=tax_shares(settlement.id, lines, contract.organization, levies),
        )
        for contract, settlement, lines in drawn
    ]


def _first_run(contract: Contract, period: Period, metered: Sequence[Metered], now: datetime) -> Settlement:
    return Settlement(
        id=id_at(contract.id, period.start, "settlement:1"),
        contract=contract,
        settlement_start=period.start,
        settlement_end=period.end,
        run=1,
        usage_numerator=sum(sum(item.numerators.values()) for item in metered),
        usage_digest=digest_of(metered),
        created_at=now,
    )


def _sources(contract: Contract, period: Period, facts: Facts) -> Sources:
    accrual = facts.accruals[contract.id]
    return Sources(
        contract=contract,
        period=period,
        accrual=accrual,
        awards=[],
        months=[],
        open_holds={accrual.ledger_hold_id},
        rates=facts.rates,
    )


def _write(cases: Sequence[Case], now: datetime) -> None:
    """Rows first and money last: the gateway waits for the buyers' accounts from `lock_books` to the commit."""
    sellers = sellers_of({key for case in cases for line in case.lines for key in line.shares})
    books = books_of_many([case.contract for case in cases], now=now)
    rows = [
        rows_of_lines(
            case.settlement.id,
            case.lines,
            case.contract,
            sellers=sellers,
            settlement=case.settlement,
            tax_held=case.tax,
            now=now,
        )
        for case in cases
    ]
    Settlement.objects.bulk_create(case.settlement for case in cases)
    Charge.objects.bulk_create(charge for charges, _ in rows for charge in charges)
    Earning.objects.bulk_create(earning for _, earnings in rows for earning in earnings)
    movements = [
        Movement(case.settlement.id, line, books[case.contract.id], case.hold.id)
        for case in cases
        for line in case.lines
    ]
    transfers = transfers_of(movements, now=now)
    # Of what is left of a hold when it has ended: it was grossed up for exactly that.
    set_aside = [
        NewHold(
            id=tax_hold_id(settlement_id=case.settlement.id, charge_id=next(iter(case.tax))),
            account_id=books[case.contract.id].buyer,
            amount_micros=sum(case.tax.values()),
            reference_id=case.contract.id,
        )
        for case in cases
        if case.tax
    ]
    ends = {
        case.hold.id: "posted" if case.hold.captured_micros + case.amount_micros else "voided"
        for case in cases
    }
    accounts = {one.account_id for one in set_aside} | {case.hold.account_id for case in cases}
    accounts |= {account for one in transfers for account in (one.debit_id, one.credit_id)}
    lock_books(holds=ends, accounts=accounts)
    post_transfers(transfers, now=now)
    close_holds(ends, now=now)
    open_holds(set_aside, code="tax", now=now)
