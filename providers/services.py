"""Everything that writes providers, hosts, offerings and capacity. The work is done in the modules named here."""

from providers.benching import record_bench
from providers.capacity import (
    CapacityGone,
    give_back_firm_share,
    give_back_period_share,
    lock_hours,
    open_capacity,
    take_firm_share,
    take_period_share,
)
from providers.derating import (
    Overcommitted,
    derated_hosts,
    deratings_of,
    lift_derating,
    lock_overcommitted,
    lose_share,
    note_engine_share,
    record_curtailed,
    record_derating,
    set_carry_over,
)
from providers.enrolling import (
    ENROLMENT_CODE_VALID,
    EnrolmentCodeRefused,
    HostSignatureRefused,
    authenticate_host,
    enrol_host,
    issue_enrolment_code,
    verify_enrolment_signature,
)
from providers.gaps import accept_gap, pull_missing_usage
from providers.heartbeats import check_heartbeats, record_heartbeat, record_registers
from providers.hosting import create_host, ensure_provider, pause_host, resume_host
from providers.list_tariffs import announce_tariff, withdraw_tariff
from providers.listing import list_offering, pause_offering, resume_offering, withdraw_offering
from providers.outages import down_in_periods, record_attempt_outages
from providers.planned_outages import HoursSold, announce_outage, withdraw_outage
from providers.profiles import lock_provider, lock_providers, set_payout_destination, set_self_billing_consent
from providers.reads import read_registers

__all__ = [
    "ENROLMENT_CODE_VALID",
    "CapacityGone",
    "EnrolmentCodeRefused",
    "HostSignatureRefused",
    "HoursSold",
    "Overcommitted",
    "accept_gap",
    "announce_outage",
    "announce_tariff",
    "authenticate_host",
    "check_heartbeats",
    "create_host",
    "derated_hosts",
    "deratings_of",
    "down_in_periods",
    "enrol_host",
    "ensure_provider",
    "give_back_firm_share",
    "give_back_period_share",
    "issue_enrolment_code",
    "lift_derating",
    "list_offering",
    "lock_hours",
    "lock_overcommitted",
    "lock_provider",
    "lock_providers",
    "lose_share",
    "note_engine_share",
    "open_capacity",
    "pause_host",
    "pause_offering",
    "pull_missing_usage",
    "read_registers",
    "record_attempt_outages",
    "record_bench",
    "record_curtailed",
    "record_derating",
    "record_heartbeat",
    "record_registers",
    "resume_host",
    "resume_offering",
    "set_carry_over",
    "set_payout_destination",
    "set_self_billing_consent",
    "take_firm_share",
    "take_period_share",
    "verify_enrolment_signature",
    "withdraw_offering",
    "withdraw_outage",
    "withdraw_tariff",
]
