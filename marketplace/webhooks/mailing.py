"""Mails on their way: claimed by lease, sent with no transaction open, and what came of it written down.

Two workers never send the same mail at once. One that dies between the mail server's yes and its own note leaves a
lease behind, and after it the mail is sent again with the same Message-ID: nobody knows that it was sent.
"""

from __future__ import annotations

import random
import smtplib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parseaddr
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.db import connection, transaction

from marketplace.webhooks.notice_models import Notice
from marketplace.webhooks.notice_texts import OPTIONAL
from marketplace.webhooks.schedule import next_attempt

# A claim ends before its lease does: after so long no further mail of it is begun, and one mail, with a few answers to
# wait for, is over well within the rest. What was not begun is tried when the lease is over.
_LEASE: Final = timedelta(minutes=10)
_BEGIN_WITHIN_S: Final = 240.0
_MOST: Final = 20
_PERMANENT: Final = range(500, 600)

_CLAIM = """
UPDATE webhooks_notice SET next_attempt_at = %(lease)s, attempts = attempts + 1
 WHERE id IN (
    SELECT id FROM webhooks_notice WHERE status = 'pending' AND next_attempt_at <= %(now)s
     ORDER BY next_attempt_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
 )
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`problem` is empty where the mail server took it; `is_final`: it will never take this one."""

    problem: str
    is_final: bool = False


def send_due_notices(*, now: datetime, most: int = _MOST) -> int:
    """Send what is due, at most `most` mails; how many were tried."""
    assert not connection.in_atomic_block, "no transaction is open while a mail server is waited for"
    claimed = _claim(now=now, most=most)
    if not claimed:
        return 0
    began, tried = time.monotonic(), 0
    with _mail_server() as server:
        for notice in claimed:
            if time.monotonic() - began > _BEGIN_WITHIN_S:
                break
            outcome = _send(server, notice)
            record_sent(notice_id=notice.pk, attempt=notice.attempts, outcome=outcome, now=now)
            tried += 1
    return tried


@transaction.atomic
def record_sent(*, notice_id: UUID, attempt: int, outcome: Outcome, now: datetime) -> bool:
    """Write a try down and decide what follows; False when another has taken the mail over meanwhile."""
    notice = (
        Notice.objects.select_for_update()
        .filter(pk=notice_id, status=Notice.Status.PENDING, attempts=attempt)
        .first()
    )
    if notice is None:
        return False
    notice.problem = outcome.problem[:200]
    again = None
    if outcome.problem and not outcome.is_final:
        again = next_attempt(
            attempts=attempt,
            give_up_at=notice.give_up_at,
            asked_s=None,
            spread=random.randrange(100),
            now=now,
        )
    notice.next_attempt_at = again
    if again is None:
        notice.status = Notice.Status.FAILED if outcome.problem else Notice.Status.SENT
        notice.ended_at = now
    notice.save(update_fields=["problem", "next_attempt_at", "status", "ended_at"])
    return True


@transaction.atomic
def _claim(*, now: datetime, most: int) -> list[Notice]:
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, {"now": now, "lease": now + _LEASE, "most": most})
        ids = [row[0] for row in cursor.fetchall()]
    return list(Notice.objects.filter(pk__in=ids).order_by("pk"))


@contextmanager
def _mail_server() -> Iterator[Any]:
    """One conversation for all; it is opened at the first mail, and again after one that broke it off."""
    server = get_connection()
    try:
        yield server
    finally:
        _hang_up(server)


def _hang_up(server: Any) -> None:
    try:
        server.close()
    except (OSError, smtplib.SMTPException):
        # What was said before counts; how it ended does not.
        server.connection = None


def _send(server: Any, notice: Notice) -> Outcome:
    _, sender = parseaddr(settings.DEFAULT_FROM_EMAIL)
    headers = {
        "Message-ID": f"<{notice.pk}@{sender.rpartition('@')[2] or 'localhost'}>",
        "Auto-Submitted": "auto-generated",
    }
    if notice.type in OPTIONAL:
        headers["List-Unsubscribe"] = f"<{settings.PORTAL_URL}/notices>"
    mail = EmailMessage(notice.subject, notice.body, to=[notice.address], headers=headers, connection=server)
    try:
        # Opened here: a backend that opens it by itself closes it after each mail.
        server.open()
        mail.send()
    except smtplib.SMTPRecipientsRefused as error:
        code, text = next(iter(error.recipients.values()))
        return _refused(server, code, text, is_final=code in _PERMANENT)
    except smtplib.SMTPDataError as error:
        return _refused(server, error.smtp_code, error.smtp_error, is_final=error.smtp_code in _PERMANENT)
    except smtplib.SMTPResponseException as error:
        # Of the market's address, password or sender: no fault of the mail, and people mend it.
        return _refused(server, error.smtp_code, error.smtp_error, is_final=False)
    except (smtplib.SMTPException, OSError) as error:
        _hang_up(server)
        return Outcome(f"the mail server cannot be reached ({type(error).__name__})")
    except ValueError:
        # It would hold up those behind it for ever.
        return Outcome("it cannot be written as a mail", is_final=True)
    return Outcome("")


def _refused(server: Any, code: int, text: bytes | str, *, is_final: bool) -> Outcome:
    _hang_up(server)
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return Outcome(f"the mail server answered {code} {' '.join(said.split())}", is_final=is_final)
