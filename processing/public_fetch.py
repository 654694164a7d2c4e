"""What strangers name by a URL is fetched from public addresses alone, whatever a name server or a redirect says."""

import ipaddress
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit
from urllib.request import getproxies

from .limits import Limits
from .video_source import download

PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}  # of a proxy whose address names none

_here = threading.local()  # `proxies` in a thread that fetches
_hooked = False


def fetch_public(url: str, limits: Limits) -> bytes:
    """The bytes at a public address.

    Args:
        url: http(s).
        limits: Of which the megabytes count.

    Raises:
        VideoDecodeError: If it cannot be had, leads to an address that is not public, or is too large.
    """
    with _public_addresses_only():
        return download(url, int(limits.max_megabytes * 1e6))


@contextmanager
def _public_addresses_only() -> Iterator[None]:
    """Within it, this thread connects to public addresses alone, and to the proxy that the machine is set up with."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_check)  # a hook is for good, so it looks at the thread
        _hooked = True
    _here.proxies = _proxies()
    try:
        yield
    finally:
        del _here.proxies


def _proxies() -> set[tuple[str, int]]:
    """Where the proxies that the machine is set up with listen, by address, as connections have it."""
    found: set[tuple[str, int]] = set()
    for proxy in map(urlsplit, getproxies().values()):
        with suppress(OSError):  # a name that nobody knows
            infos = socket.getaddrinfo(proxy.hostname, proxy.port or PORTS.get(proxy.scheme), type=socket.SOCK_STREAM)
            found.update((str(info[4][0]), int(info[4][1])) for info in infos)
    return found


def _check(event: str, arguments: tuple) -> None:
    """Refuse the address of the connection itself, so that no name server and no redirect gets around it."""
    if event != "socket.connect" or not hasattr(_here, "proxies"):
        return
    if not isinstance(arguments[1], tuple):  # a path is a socket of this machine
        return
    host, port, *_ = arguments[1]
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        public = False  # a name, which the socket would look up by itself
    else:
        public = (getattr(address, "ipv4_mapped", None) or address).is_global
    if not public and (host, port) not in _here.proxies:
        raise PermissionError(f"{host} is no public address")


__all__ = ["fetch_public"]
