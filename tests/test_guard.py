"""The guard of addresses that other people choose: resolved once, each checked, and the checked one connected to."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpcore2
import httpx2
import pytest

from service.errors import Invalid
from service.providers.guard import BlockedAddress, GuardedBackend, guarded_client, is_public
from service.providers.http import HttpProvider
from service.providers.registry import Registry
from tests.conftest import Provider

PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "172.32.0.1", "100.128.0.1"]
PRIVATE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "169.254.0.1", "100.64.0.1", "100.127.255.255", "224.0.0.1", "255.255.255.255"),
    *("192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "240.0.0.1", "192.88.99.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fdaa::3", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:7f00:1::", "2001::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_open_net_may_be_reached(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_of_our_own_net_may_not(address: str) -> None:
    assert not is_public(address)


class Resolving(GuardedBackend):
    """A guard whose names have the addresses given here; it counts how often it is asked."""

    def __init__(self, allow: tuple[str, ...], *addresses: str) -> None:
        super().__init__(allow)
        self.addresses = list(addresses)
        self.asked = 0

    @asynccontextmanager
    async def resolver(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def known(host: Any, port: Any, **kwargs: Any) -> Any:
            if host != "shop.example":
                return await real(host, port, **kwargs)
            self.asked += 1
            kinds = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in self.addresses]
            return [(k, socket.SOCK_STREAM, 6, "", (a, port)) for k, a in zip(kinds, self.addresses, strict=True)]

        loop.getaddrinfo = known  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            loop.getaddrinfo = real  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["169.254.169.254"], ["10.1.2.3", "1.1.1.1"], ["::ffff:127.0.0.1"]],
    ids=str,
)
async def test_a_name_with_one_forbidden_address_is_refused_before_any_connection(addresses: list[str]) -> None:
    guard = Resolving((), *addresses)
    async with guard.resolver():
        with pytest.raises(BlockedAddress):
            await guard.connect_tcp("shop.example", 1)
    assert guard.asked == 1


async def test_the_name_is_looked_up_once_and_the_checked_address_connected_to(provider: Provider) -> None:
    """A second look-up would be the chance to give another address: it does not happen."""
    guard = Resolving(("shop.example",), "127.0.0.1")
    port = int(provider.url.split(":")[2].split("/")[0])
    async with guard.resolver():
        stream = await guard.connect_tcp("shop.example", port)
        await stream.aclose()
    assert guard.asked == 1


async def test_a_name_that_answers_on_its_last_address_only_is_reached(provider: Provider) -> None:
    guard = Resolving(("loopback",), "127.0.0.9", "127.0.0.1")
    port = int(provider.url.split(":")[2].split("/")[0])
    async with guard.resolver():
        stream = await guard.connect_tcp("shop.example", port)
        await stream.aclose()


async def test_a_name_that_answers_nowhere_is_a_refused_connection() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        guard = Resolving(("loopback",), "127.0.0.9", "127.0.0.1")
        async with guard.resolver():
            with pytest.raises(httpcore2.ConnectError) as refusal:
                await guard.connect_tcp("shop.example", taken.getsockname()[1])
    assert not isinstance(refusal.value, BlockedAddress)


async def test_what_is_allowed_is_allowed_by_that_name_or_address_only() -> None:
    for allow, host, addresses, reached in [
        (("shop.example",), "SHOP.example", ["127.0.0.1"], True),
        (("127.0.0.1",), "shop.example", ["127.0.0.1"], True),
        (("loopback",), "shop.example", ["127.0.0.1"], True),
        (("loopback",), "shop.example", ["10.0.0.1"], False),
        (("other.example",), "shop.example", ["127.0.0.1"], False),
        ((), "shop.example", ["127.0.0.1"], False),
    ]:
        assert all(GuardedBackend(allow)._may_reach(host, one) for one in addresses) is reached, (allow, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "127.1"])
async def test_no_spelling_of_this_machine_gets_through(provider: Provider, host: str) -> None:
    url = provider.url.replace("127.0.0.1", host)
    async with guarded_client(()) as client:
        with pytest.raises(httpx2.TransportError):
            await client.post(url, json={})
    assert provider.seen == []


async def test_a_unix_socket_is_not_reached() -> None:
    with pytest.raises(BlockedAddress):
        await GuardedBackend(("loopback",)).connect_unix_socket("/tmp/x")


async def test_the_environments_proxies_are_not_asked(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with guarded_client(("loopback",)) as client:
        assert (await client.post(provider.url, json={})).status_code == 200


# -- what the door takes -------------------------------------------------------------------------------


async def chosen(entry: dict[str, Any]) -> Any:
    async with guarded_client(()) as client:
        return Registry([HttpProvider(client)]).choose({"http-agent-tool": entry})[1]


@pytest.mark.parametrize(
    "url",
    ["ftp://x.example", "http://", "//x.example", "http://x.example:99999/", "http://x.example:0/", "http://[x/", "x",
     "http://x.example/\u0000", "http://exa mple/", "file:///etc/passwd", "http:///path"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("nested", [True, False])
async def test_a_url_that_could_not_be_called_is_refused_where_it_stands(url: str, nested: bool) -> None:
    with pytest.raises(Invalid) as refusal:
        await chosen({"data": {"url": url}} if nested else {"url": url})
    at = "/run_input/agent_tool_config/http-agent-tool" + ("/data" if nested else "") + "/url"
    assert [error["pointer"] for error in refusal.value.errors] == [at]


async def test_a_null_in_a_catalogue_entry_is_a_setting_left_out() -> None:
    config = await chosen({"url": "https://x.example", "headers": None, "timeout_seconds": None, "schema": None})
    assert config == {"url": "https://x.example"}


@pytest.mark.parametrize("name", ["Idempotency-Key", "x-hitl-run-id", "Host", "Content-Length", "bad name", "é"])
async def test_headers_that_are_ours_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        await chosen({"url": "https://x.example", "headers": {name: "x"}})
