"""Where the local market of this checkout keeps its data. One checkout, one directory, the same at every start."""

import os
from hashlib import sha256
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SHARED_ROOT = Path("/var/lib/tokenyard")


def data_directory() -> Path:
    """`.data` in the checkout; for root a directory that PostgreSQL's own user can reach (a checkout may lie in /root).

    TOKENYARD_DATA overrides both.
    """
    chosen = os.environ.get("TOKENYARD_DATA")
    if chosen:
        return Path(chosen).resolve()
    if os.geteuid() != 0:
        return CHECKOUT / ".data"
    return SHARED_ROOT / f"{CHECKOUT.name}-{sha256(os.fsencode(CHECKOUT)).hexdigest()[:10]}"
