"""A month larger than a column of the books: its lines are split, and nothing fails or is lost."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from marketplace.billing.line_room import MOST, fitting
from marketplace.billing.models import StatementLine
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.statements import issue_statements
from pricing.models import Grade
from providers.models import Provider
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.world import HOUR, assert_books_balance, identify
from tests.cast import Party, Plant, fund

_COLUMN = st.integers(-MOST, MOST)


@given(st.lists(st.tuples(_COLUMN, _COLUMN), max_size=20))
def test_every_run_fits_and_together_they_are_what_was_given(items: list[tuple[int, int]]) -> None:
    runs = list(fitting(items, sums=lambda item: item))
    assert [item for run in runs for item in run] == items
    for run in runs:
        assert run
        assert all(abs(sum(column)) <= MOST for column in zip(*run, strict=True))
    # No more of them than it takes: the next item never fitted.
    for run, after in pairwise(runs):
        assert any(abs(sum(column)) > MOST for column in zip(*run, after[0], strict=True))


def test_a_month_of_ten_trillion_tokens_is_invoiced_and_stated_on_two_lines(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    for _ in range(7):
        fund(acme, 10**12, now)
    # Two hours of five trillion standard tokens, 3,000,000 USD each at 600,000 micros per Mtok.
    volume, price = 5 * 10**18, 3 * 10**12
    assert volume < MOST < 2 * volume
    for hour in (now, now + HOUR):
        use(acme, grade, plant, volume, hour, price)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert [(line.numerator, line.amount_micros) for line in invoice.lines.all()] == [(volume, price)] * 2
    assert (invoice.total_micros, invoice.status) == (2 * price, "paid")
    Provider.objects.update(self_billing_consent_at=now, payout_destination="iban:test")
    identify(hyperion)
    (statement,) = issue_statements(month_start=MARCH, now=APRIL_2)
    lines = StatementLine.objects.filter(statement=statement)
    assert [(line.numerator, line.gross_micros) for line in lines] == [(volume, price)] * 2
    assert (statement.gross_micros, statement.fee_micros) == (2 * price, 2 * price // 20)
    assert_books_balance()
