"""Breakpoints inside PostgreSQL: a process that gets to a named point of its transaction waits there until let go.

They are triggers and locks of the test's own database, so nothing of the code under test is replaced, and they stop
it wherever its statements may come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from tests.market import wait_until

_LOCK = 7_032_001
_FUNCTION = f"""
CREATE OR REPLACE FUNCTION fault_stop() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared({_LOCK});
    RETURN NEW;
END
$$
"""
# Point to what is executed: `{first}` and `{middle}` are ids of events of the load.
POINTS = {
    # Of a claim nothing is seen but its locks; the next that any ingestion needs is what it knows of contracts.
    "claimed": "LOCK TABLE metering_meterpoint IN ACCESS EXCLUSIVE MODE",
    "before the first event": """CREATE TRIGGER fault_stop BEFORE INSERT ON metering_usageevent FOR EACH ROW
                                 WHEN (NEW.id = '{first}') EXECUTE FUNCTION fault_stop()""",
    "amid the events": """CREATE TRIGGER fault_stop BEFORE INSERT ON metering_usageevent FOR EACH ROW
                          WHEN (NEW.id = '{middle}') EXECUTE FUNCTION fault_stop()""",
    "before the roll-ups": """CREATE TRIGGER fault_stop BEFORE INSERT OR UPDATE ON metering_usagerollup
                              FOR EACH ROW EXECUTE FUNCTION fault_stop()""",
    "after the roll-ups": """CREATE TRIGGER fault_stop AFTER INSERT OR UPDATE ON metering_usagerollup
                             FOR EACH STATEMENT EXECUTE FUNCTION fault_stop()""",
    "before the mark": """CREATE TRIGGER fault_stop BEFORE UPDATE ON metering_usagebatch
                          FOR EACH ROW EXECUTE FUNCTION fault_stop()""",
    "after the mark": """CREATE TRIGGER fault_stop AFTER UPDATE ON metering_usagebatch
                         FOR EACH STATEMENT EXECUTE FUNCTION fault_stop()""",
    "at commit": """CREATE CONSTRAINT TRIGGER fault_stop AFTER UPDATE ON metering_usagebatch
                    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fault_stop()""",
    "before the inbox": """CREATE TRIGGER fault_stop BEFORE INSERT ON metering_usagebatch
                           FOR EACH ROW EXECUTE FUNCTION fault_stop()""",
    "at the inbox's commit": """CREATE CONSTRAINT TRIGGER fault_stop AFTER INSERT ON metering_usagebatch
                                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fault_stop()""",
    "amid the invoices": """CREATE TRIGGER fault_stop AFTER INSERT ON billing_invoiceline
                            FOR EACH ROW EXECUTE FUNCTION fault_stop()""",
    # Of the second batch, where batches are of two.
    "after the numbers": """CREATE TRIGGER fault_stop AFTER INSERT OR UPDATE ON billing_documentnumber FOR EACH ROW
                            WHEN (NEW.last_number > 2) EXECUTE FUNCTION fault_stop()""",
    "at the invoices' commit": """CREATE CONSTRAINT TRIGGER fault_stop AFTER INSERT ON billing_invoicestatuschange
                                  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fault_stop()""",
}
# Between claim and commit of an ingestion, in its order.
OF_INGESTION = tuple(POINTS)[:8]
_TABLES = (
    "metering_usageevent",
    "metering_usagerollup",
    "metering_usagebatch",
    "billing_invoiceline",
    "billing_documentnumber",
    "billing_invoicestatuschange",
)


class Stop:
    """One breakpoint. Whoever comes to it waits until `release`."""

    def __init__(self, holder: psycopg.Connection[tuple[object, ...]]) -> None:
        self._holder = holder
        self._released = False

    def wait(self, count: int = 1) -> list[int]:
        """The backends that wait at the point, once there are as many."""

        def waiting() -> list[int]:
            rows = self._holder.execute(
                """SELECT DISTINCT pid FROM pg_locks
                    WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)) ORDER BY 1"""
            ).fetchall()
            return [int(str(row[0])) for row in rows]

        found: list[int] = wait_until(
            lambda: len(at := waiting()) >= count and at, "somebody at the breakpoint"
        )
        return found

    def release(self) -> None:
        """Let everybody go; again changes nothing."""
        if not self._released:
            self._released = True
            with suppress(psycopg.OperationalError):  # The server has died meanwhile, and all with it.
                self._holder.execute("SELECT pg_advisory_unlock_all()")
                self._holder.commit()


@contextmanager
def stop_at(point: str, owner_url: str, *, first: object = None, middle: object = None) -> Iterator[Stop]:
    """Set the breakpoint; afterwards let everybody go and remove it."""
    statement = POINTS[point].format(first=first, middle=middle)
    with psycopg.connect(owner_url) as holder:
        holder.execute(_FUNCTION)
        if statement.startswith("CREATE"):
            holder.execute(statement.encode())
            holder.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
            holder.commit()
        else:
            holder.commit()
            holder.execute(statement.encode())
        stop = Stop(holder)
        try:
            yield stop
        finally:
            stop.release()
            with suppress(psycopg.OperationalError):
                remove_stops(owner_url)


def remove_stops(owner_url: str) -> None:
    """Also those whose setter was cut off with its server."""
    with psycopg.connect(owner_url, autocommit=True) as owner:
        for table in _TABLES:
            owner.execute(f"DROP TRIGGER IF EXISTS fault_stop ON {table}".encode())
