"""A mail server on loopback that speaks as much SMTP (RFC 5321) as a conversation needs, and says no when asked to."""

from __future__ import annotations

import email
import email.policy
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import cast


@dataclass
class MailServer:
    """`refuse`: what an address or a command is answered instead of 250; `drop`: break off after a mail was taken."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    conversations: int = 0
    refuse: dict[str, str] = field(default_factory=dict)
    drop: bool = False


class _Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("_Listener", self.server).mail_server
        server.conversations += 1
        self._say("220 loopback")
        asked = ""
        while line := self.rfile.readline():
            verb = line.decode().strip()
            command = verb[:4].upper()
            if command in ("EHLO", "HELO", "MAIL", "RSET"):
                self._say(server.refuse.get(command, "250 OK"))
            elif command == "RCPT":
                asked = verb.partition("<")[2].partition(">")[0]
                self._say(server.refuse.get(asked, "250 OK"))
            elif command == "DATA":
                self._say("354 go on")
                body = b""
                while (part := self.rfile.readline()) not in (b".\r\n", b""):
                    body += part.removeprefix(b".") if part.startswith(b"..") else part
                parsed = email.message_from_bytes(body, policy=email.policy.default)
                server.mails.append(parsed)
                server.recipients.append(asked)
                if server.drop:
                    return
                self._say("250 taken")
            elif command == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("502 no")

    def _say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    mail_server: MailServer


@contextmanager
def mail_server() -> Iterator[MailServer]:
    with _Listener(("127.0.0.1", 0), _Conversation) as listener:
        listener.mail_server = MailServer(port=listener.server_address[1])
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield listener.mail_server
        finally:
            listener.shutdown()
            thread.join()
