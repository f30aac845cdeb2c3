"""Requests as they were before a reverse proxy: another host, a path with a prefix."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse

from earshot.app.address import Address, clean_prefix, parse_host


def read_forwarded_headers(headers: Headers) -> Address:
    """What the X-Forwarded headers say. They come from outside: what is no plain path or host is ignored."""

    def first(name: str) -> str:
        return headers.get(name, "").partition(",")[0].strip()

    # each proxy of a chain adds the part that it took off
    parts = ",".join(headers.getlist("x-forwarded-prefix")).split(",")
    prefix = clean_prefix("".join(part.strip().removesuffix("/") for part in parts))
    scheme, host = first("x-forwarded-proto"), first("x-forwarded-host")
    return Address(
        prefix or "", scheme if scheme in ("http", "https") else None, host if parse_host(host) else None
    )


class ProxyMiddleware:
    """ASGI middleware: requests as they were before a proxy took the prefix off and changed the host.

    Args:
        address: what --root-path says, which comes before the headers; None where it is not given.
        hosts: those that a request may name; none: any.
        own: what the server's own paths begin with, such as api.
    """

    def __init__(self, app: Any, address: Address | None, hosts: Collection[str], own: Collection[str]):
        self.app, self.address, self.hosts, self.own = app, address, hosts, own

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Refuse another host, or pass on with the address that the browser sees."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if self.hosts and parse_host(headers.get("host", "")) not in self.hosts:
            return await PlainTextResponse(self.format_refusal(), 400)(scope, receive, send)
        said = read_forwarded_headers(headers)
        fixed = self.address or said
        prefix, host = fixed.prefix, fixed.host or said.host
        # Most proxies take the prefix off. One that leaves it is known by the path, unless the server's own
        # paths begin with the prefix.
        left = prefix and prefix.removeprefix("/") not in self.own
        if left and scope["path"] == prefix:  # the page's links are relative to its folder
            return await RedirectResponse(f"{prefix}/")(scope, receive, send)
        if not (left and scope["path"].startswith(f"{prefix}/")):
            scope = {**scope, "path": prefix + scope["path"]}
        # gradio makes addresses of these without a look at the prefix: it gets the browser's host instead
        gone = {b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix", b"x-gradio-server"}
        rest = [
            pair for pair in scope["headers"] if pair[0] not in gone and not (host and pair[0] == b"host")
        ]
        scope = {
            **scope,
            "scheme": fixed.scheme or said.scheme or scope["scheme"],
            "root_path": prefix,
            "headers": [*rest, (b"host", host.encode())] if host else rest,
        }
        await self.app(scope, receive, send)

    def format_refusal(self) -> str:
        """What a request for another host gets: the reason, and what to do."""
        return (
            f"This page answers requests for {' or '.join(sorted(self.hosts))} alone, and this one names "
            "another host. To reach it from other machines, start app.py with --host 0.0.0.0 (whoever "
            "reaches this machine may then use it). Behind a proxy, let it send one of these as Host, or "
            "start app.py with --root-path and the page's whole address.\n"
        )
