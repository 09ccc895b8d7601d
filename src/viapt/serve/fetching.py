"""Images from addresses that a client names, without lending it the server's place in the network.

Every address that a host's name stands for must be a public one, and the connection goes to the address that was
checked, whatever the name stands for a moment later. Redirections are followed by hand, and each is checked anew. No
proxy of the environment is used, which would resolve names by itself. Size, time and redirections are bounded.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Network, ip_address

import httpx

from viapt.serve.problems import Problem

REDIRECTIONS = 3
LONGEST = 2048  # characters of an address
MOVED = (301, 302, 303, 307, 308)
TRANSLATED = IPv6Network("64:ff9b::/96")  # stands for IPv4 addresses behind a gateway
UNICAST = IPv6Network("2000::/3")  # where all of the internet's own addresses are, so far
DOCUMENTS = IPv6Network("3fff::/20")  # of examples in texts, which older Pythons do not know

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host.

    Raises:
        OSError: there are none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, those included that an IPv6 address carries inside."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip.ipv4_mapped is not None or ip in TRANSLATED:
        return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
    carried = [inner for inner in (ip.sixtofour, *(ip.teredo or ())) if inner is not None]
    return ip.is_global and ip in UNICAST and ip not in DOCUMENTS and all(is_public(str(inner)) for inner in carried)


class Fetcher:
    """Fetches images.

    Args:
        size: bytes of all images of a request together.
        seconds: that they may take.
        resolve: host and port -> addresses.
        allowed: whether to connect to an address.
    """

    def __init__(
        self,
        size: int,
        seconds: float,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self.size, self.seconds, self.resolve, self.allowed = size, seconds, resolve, allowed

    async def fetch(self, urls: list[str]) -> list[bytes]:
        """What these addresses answer, one after the other.

        Raises:
            Problem: an address that is refused, does not answer, or answers too much.
        """
        found: list[bytes] = []
        url = ""
        try:
            async with asyncio.timeout(self.seconds):
                for url in urls:
                    found.append(await self.follow(url, self.size - sum(map(len, found))))
        except TimeoutError:
            raise unreachable(url, f"was not there within {self.seconds:g} s") from None
        return found

    async def follow(self, url: str, size: int) -> bytes:
        """What an address answers, where it moved to included."""
        where = parsed(url, url)
        for _ in range(REDIRECTIONS + 1):
            answer = await self.ask(url, where, size)
            if isinstance(answer, bytes):
                return answer
            where = answer
        raise unreachable(url, f"moves more than {REDIRECTIONS} times")

    async def ask(self, url: str, where: httpx.URL, size: int) -> bytes | httpx.URL:
        """One request to a checked address: the body, or where it moved to."""
        address = await self.checked(url, where)
        pinned = where.copy_with(host=address)
        headers = {"Host": where.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
        extensions = {"sni_hostname": where.host} if where.scheme == "https" else {}
        try:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=self.seconds) as client,
                client.stream("GET", pinned, headers=headers, extensions=extensions) as response,
            ):
                if response.status_code in MOVED and "location" in response.headers:
                    return parsed(url, response.headers["location"], where)
                if response.status_code != 200:
                    raise unreachable(url, f"answers {response.status_code}")
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise unreachable(url, "answers in an encoding that was not asked for")
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > size:
                        raise Problem(
                            413,
                            "request_too_large",
                            f"{url} is too large",
                            expected=f"at most {self.size:,} bytes in a request",
                        )
                return bytes(body)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last of a name that it moves to
            raise unreachable(url, f"does not answer ({type(error).__name__})") from error

    async def checked(self, url: str, where: httpx.URL) -> str:
        """The first address of a host, if all of them are allowed."""
        port = where.port or {"http": 80, "https": 443}[where.scheme]
        try:
            addresses = await self.resolve(where.host, port)
        except (OSError, UnicodeError) as error:
            raise unreachable(url, f"has no address ({where.host})") from error
        if not addresses or not all(self.allowed(address) for address in addresses):
            raise Problem(
                422, "address_refused", f"{url} leads to an address that is not public", expected="one of the internet"
            )
        return addresses[0]


def parsed(url: str, text: str, base: httpx.URL | None = None) -> httpx.URL:
    """An address, which `url` led to, checked as far as it can be without asking anybody.

    Args:
        base: what it is relative to.

    Raises:
        Problem: it is none, or of another scheme, or carries a password.
    """
    try:
        where = httpx.URL(text) if base is None else base.join(text)
        text, host = str(where), where.host  # of punycode that stands for nothing, an error here
    except (httpx.InvalidURL, ValueError) as error:
        raise refused(url) from error
    sound = where.scheme in ("http", "https") and host and not where.userinfo and (where.port or 1) < 2**16
    if len(text) > LONGEST or not sound:
        raise refused(url)
    return where


def refused(url: str) -> Problem:
    """No address of an image."""
    return Problem(
        422,
        "address_refused",
        f"{url[:LONGEST]!r} is no address of an image",
        expected=f"http:// or https://, without a password, of at most {LONGEST:,} characters",
    )


def unreachable(url: str, why: str) -> Problem:
    """An address without an image."""
    return Problem(422, "unreachable_image", f"{url} {why}", expected="an address that answers with an image")
