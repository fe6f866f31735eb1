"""What can keep the agent from working, said so that its owner knows what to do."""


class CannotStart(Exception):
    """`part` cannot start because of `reason`; `remedy` is what the owner can do."""

    def __init__(self, part: str, reason: str, remedy: str) -> None:
        super().__init__(f"{part}: {reason}. {remedy[:1].upper()}{remedy[1:]}.")
        self.part = part
        self.reason = reason
        self.remedy = remedy


class MarketUnreachable(Exception):
    """No answer from the market, or a server error: worth another try."""


class MarketBusy(MarketUnreachable):
    """The market asks for patience (429, 503): `wait_s` seconds, or it does not say how long."""

    def __init__(self, reason: str, wait_s: float | None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class MarketRefused(Exception):
    """The market understood and said no (4xx)."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"the market answered {status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


class EngineUnreachable(Exception):
    """The engine does not answer, or not as the engine it should be."""
