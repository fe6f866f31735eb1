"""Where the market may be sent: the guard against a customer who registers an address of our own network (SSRF)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from marketplace.errors import InvalidInput

MAX_URL_CHARACTERS: Final = 300
_LOWEST_FREE_PORT: Final = 1_024
_SYSTEM_PORTS: Final = (80, 443)
_NAT64: Final = 0x0064FF9B << 96
_NAT64_MASK: Final = ((1 << 96) - 1) << 32
_IPV4_COMPATIBLE_BITS: Final = 32

Resolve = Callable[[str, int], Iterable[str]]


def resolve_addresses(host: str, port: int) -> list[str]:
    """Every address the host stands for, as the gateway's resolver reads it: also 127.1, 0x7f000001, 2130706433."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(entry[4][0]) for entry in found})


def check_url(url: str, *, allow_private: bool, field: str, resolve: Resolve = resolve_addresses) -> str:
    """The URL in its plain form, without a slash at the end. Raises InvalidInput naming `field`.

    Every address behind the name must be a public one, unless `allow_private`. A name can change its mind later, so
    whoever connects checks the address again with `is_public_address`.
    """
    if not isinstance(url, str) or not url or len(url) > MAX_URL_CHARACTERS:
        raise InvalidInput(f"It must be a URL of at most {MAX_URL_CHARACTERS} characters.", field=field)
    if not url.isascii() or not url.isprintable() or any(character in url for character in " \\<>\"'`{}|^"):
        raise InvalidInput("It must be a URL in printable ASCII.", field=field)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput("It is not a URL.", field=field) from None
    if parts.scheme not in ("http", "https"):
        raise InvalidInput("It must begin with http:// or https://.", field=field)
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise InvalidInput("It must not carry a user name or a password.", field=field)
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise InvalidInput("It must not carry a query or a fragment.", field=field)
    if not host or "%" in host:
        raise InvalidInput("It must name a host.", field=field)
    if parts.netloc.endswith(":"):
        raise InvalidInput("Its port is missing.", field=field)
    if ".." in parts.path.split("/"):
        raise InvalidInput("Its path must not climb.", field=field)
    number = port if port is not None else (443 if parts.scheme == "https" else 80)
    if number == 0 or (number < _LOWEST_FREE_PORT and number not in _SYSTEM_PORTS and not allow_private):
        raise InvalidInput("Its port must be 80, 443, or from 1024 to 65535.", field=field)
    if not allow_private:
        addresses = list(resolve(host, number))
        if not addresses:
            raise InvalidInput("Its host name cannot be resolved.", field=field)
        if not all(is_public_address(address) for address in addresses):
            raise InvalidInput("It must be an address on the public internet.", field=field)
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


def is_public_address(text: str) -> bool:
    """Whether an address is globally reachable unicast, looking through IPv4-mapped, 6to4, Teredo and NAT64 forms."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if "%" in text:
        return False  # A zone makes it link-local.
    return all(_is_public(each) for each in (address, *_embedded(address)))


class PublicResolver(AbstractResolver):
    """Answers with public addresses only: a name that was public at enrolment may point elsewhere now."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [result for result in found if is_public_address(result["host"])]
        if not public:
            raise OSError("the host's name has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address.is_site_local:
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_loopback
        and not address.is_link_local
        and not address.is_private
        and not address.is_unspecified
    )


def _embedded(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 one leads to."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour]
    if address.teredo is not None:
        found.extend(address.teredo)
    value = int(address)
    if value & _NAT64_MASK == _NAT64 or value >> _IPV4_COMPATIBLE_BITS == 0:
        found.append(IPv4Address(value & 0xFFFFFFFF))
    return [each for each in found if each is not None]
