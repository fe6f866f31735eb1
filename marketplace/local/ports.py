"""Free ports on loopback: the usual ones when they are free, kept from start to start, others when taken."""

import json
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

LOOPBACK = "127.0.0.1"
USUAL: Mapping[str, int] = {
    "web": 8000,
    "gateway": 8001,
    "agent-1": 8101,
    "agent-2": 8102,
    "engine-1": 8201,
    "engine-2": 8202,
    "postgres": 54320,
    "redis": 63790,
    "supervisor": 9101,
}
_SEARCH_WIDTH = 400


def is_free(port: int) -> bool:
    with socket.socket() as candidate:
        # As servers do: a port whose last connection still waits in TIME_WAIT is free.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose_ports(usual: Mapping[str, int], *, kept: Mapping[str, int]) -> dict[str, int]:
    """One free port per name, all different: the kept one, else the usual one, else the next free above it."""
    chosen: dict[str, int] = {}
    for name, first_choice in usual.items():
        taken = set(chosen.values())
        wishes = [kept[name]] if name in kept else []
        chosen[name] = _first_free([*wishes, *range(first_choice, first_choice + _SEARCH_WIDTH)], taken)
    return chosen


def any_free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind((LOOPBACK, 0))
        return int(candidate.getsockname()[1])


def _first_free(candidates: Iterable[int], taken: set[int]) -> int:
    for port in candidates:
        if port not in taken and is_free(port):
            return port
    raise OSError("no free port on 127.0.0.1; stop some programs and try again")


def read_ports(file: Path) -> dict[str, int]:
    try:
        kept = json.loads(file.read_text())
        return {str(name): int(port) for name, port in kept.items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def write_ports(file: Path, ports: Mapping[str, int]) -> None:
    file.write_text(json.dumps(dict(ports), indent=1) + "\n")


def chosen_ports() -> dict[str, int]:
    """The ports of the market that this process belongs to, as `make run` tells its programs."""
    return {name: int(os.environ[port_variable(name)]) for name in USUAL if port_variable(name) in os.environ}


def port_variable(name: str) -> str:
    return "TOKENYARD_PORT_" + name.upper().replace("-", "_")
