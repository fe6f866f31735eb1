"""Everything that writes contracts, for the rooms above. The work is done in the modules named here."""

from marketplace.contracts.awards import Award, record_awards
from marketplace.contracts.carrying_over import keep_carry_over, return_carry_over
from marketplace.contracts.committed import (
    accept_quote,
    advance_contracts,
    count_month,
    grant_rollover,
    mark_entitlement_settled,
    mark_month_paid,
    month_price_micros,
)
from marketplace.contracts.curtailing import (
    curtail_derated,
    curtail_host,
    curtailed_parts,
    derate_host,
    end_derating,
)
from marketplace.contracts.failing import record_failed
from marketplace.contracts.holds import (
    Captured,
    Opened,
    capture_hold,
    extend_hold,
    open_hold,
    sweep_holds,
    void_hold,
)
from marketplace.contracts.nominating import (
    ContractSuspended,
    NotCommitted,
    release_volume,
    resolve_nominations,
)
from marketplace.contracts.on_demand import ensure_on_demand_contract
from marketplace.contracts.quoting import QuoteExpired, request_quote
from marketplace.contracts.spot import (
    close_spot_contract,
    open_spot_contract,
    record_award,
    set_period_rate,
    set_spot_max_rate,
)
from marketplace.contracts.suspending import reclaim_capacity, resume_contract, suspend_contract
from marketplace.contracts.unpaid import warn_or_end_unpaid

__all__ = [
    "Award",
    "Captured",
    "ContractSuspended",
    "NotCommitted",
    "Opened",
    "QuoteExpired",
    "accept_quote",
    "advance_contracts",
    "capture_hold",
    "close_spot_contract",
    "count_month",
    "curtail_derated",
    "curtail_host",
    "curtailed_parts",
    "derate_host",
    "end_derating",
    "ensure_on_demand_contract",
    "extend_hold",
    "grant_rollover",
    "keep_carry_over",
    "mark_entitlement_settled",
    "mark_month_paid",
    "month_price_micros",
    "open_hold",
    "open_spot_contract",
    "reclaim_capacity",
    "record_award",
    "record_awards",
    "record_failed",
    "release_volume",
    "request_quote",
    "resolve_nominations",
    "resume_contract",
    "return_carry_over",
    "set_period_rate",
    "set_spot_max_rate",
    "suspend_contract",
    "sweep_holds",
    "void_hold",
    "warn_or_end_unpaid",
]
