"""Connections that only reach public addresses: resolve once, check every address, connect to a checked one.

A name that changes its address between the check and the connection gains nothing, since there is no
second look-up; redirects are not followed. IANA special-purpose registries (RFC 6890) by `ipaddress`,
and what Python 3.11 does not know of them by hand.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any, Final

import httpcore2
import httpx2

_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(net)
    for net in (
        "192.0.0.0/24",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "192.88.99.0/24",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001:db8::/32",
        "fdaa::/16",
    )
)


class BlockedAddress(httpcore2.ConnectError):
    """The host has an address that must not be reached from here."""


def is_public(address: str) -> bool:
    """Whether the address is a global unicast one, IPv4 inside IPv6 looked through."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour or ip.teredo:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _NOT_PUBLIC)


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """`allow` holds host names or addresses that may be private; `loopback` stands for this machine."""

    def __init__(self, allow: Iterable[str]) -> None:
        self._inner = httpcore2.AnyIOBackend()
        self._allow = frozenset(host.lower() for host in allow)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        *others, last = await self._checked(host, port)
        for address in others:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue  # a name with an IPv6 and an IPv4 address may answer on one of them only
        return await self._inner.connect_tcp(last, port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        raise BlockedAddress("unix sockets are not reached from here")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    async def _checked(self, host: str, port: int) -> list[str]:
        """The addresses of the host, in the system's order. Raises `BlockedAddress` if one may not be reached."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError("the host has no address") from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not addresses:
            raise httpcore2.ConnectError("the host has no address")
        if not all(self._may_reach(host, address) for address in addresses):
            raise BlockedAddress("the host has an address that may not be reached")
        return addresses

    def _may_reach(self, host: str, address: str) -> bool:
        if host.lower() in self._allow or address in self._allow or is_public(address):
            return True
        return "loopback" in self._allow and ipaddress.ip_address(address.partition("%")[0]).is_loopback


def blocked(error: BaseException | None) -> bool:
    """Whether the guard refused, however deep the client wrapped it."""
    while error is not None:
        if isinstance(error, BlockedAddress):
            return True
        error = error.__cause__ or error.__context__
    return False


def guarded_client(allow: Iterable[str]) -> httpx2.AsyncClient:
    """A client for addresses that other people chose. No proxy, no environment, no redirects."""
    transport = httpx2.AsyncHTTPTransport(trust_env=False, retries=0, limits=httpx2.Limits(max_connections=None))
    transport._pool._network_backend = GuardedBackend(allow)  # there is no public way; a test holds it
    return httpx2.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)
