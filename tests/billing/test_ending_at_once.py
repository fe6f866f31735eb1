"""A contract ended by many at once ends once, and for one fee (real commits, real connections)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import UUID

from django.db import connection

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.terminating import terminate_contract
from marketplace.contracts.models import ContractEvent, Entitlement
from marketplace.errors import DomainError
from marketplace.ids import uuid7
from marketplace.ledger.selectors import check_ledger
from tests.billing.test_month_ends import buy
from tests.cast import fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase


def test_a_contract_ended_by_eight_at_once_ends_once(committed_db: TestDatabase, now: datetime) -> None:
    make_party("Operator", ["operator"], now)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    make_plant(hyperion, grade, now)
    fund(acme, 100_000_000, now)
    contract = buy(acme, grade, now, months=3)
    charge_committed_months(now=contract.starts_at)

    def one(operation_id: UUID) -> str:
        try:
            ended = terminate_contract(
                organization_id=acme.id,
                contract_id=contract.id,
                ends_at=None,
                reason="at once",
                operation_id=operation_id,
                now=contract.starts_at,
                actor=SYSTEM,
            )
        except DomainError as error:
            return error.code
        else:
            return str(ended.fee_micros)
        finally:
            connection.close()

    # Four clicks of one form, four of four others: whoever comes first, one end and one fee.
    twice = uuid7()
    with ThreadPoolExecutor(8) as pool:
        answers = Counter(pool.map(one, [twice] * 4 + [uuid7() for _ in range(4)]))
    fee = Charge.objects.get(kind="termination").amount_micros
    assert answers[str(fee)] in (1, 4)
    assert sum(answers.values()) - answers[str(fee)] == answers["invalid_input"]
    assert ContractEvent.objects.filter(kind="terminated").count() == 1
    assert Charge.objects.filter(kind="adjustment").count() == 1
    contract.refresh_from_db()
    assert Entitlement.objects.get().period_end == contract.ends_at
    assert check_ledger() == []
