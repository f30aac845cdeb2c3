"""Middleware that restores the host and the path prefix that a reverse proxy took off a request."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse

from earshot.app.address import Address, clean_prefix, parse_host


def read_forwarded_headers(headers: Headers) -> Address:
    """The address in the X-Forwarded headers. They are untrusted: an invalid path or host is ignored."""

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
    """ASGI middleware: gives requests the prefix and the host that the browser sees.

    Args:
        address: of --root-path, which overrides the headers; None where it is not given.
        hosts: the accepted ones; empty: any.
        own: the first parts of the server's own paths, such as api.
    """

    def __init__(self, app: Any, address: Address | None, hosts: Collection[str], own: Collection[str]):
        self.app, self.address, self.hosts, self.own = app, address, hosts, own

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Refuse a foreign host, else pass the request on with the browser's address."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if self.hosts and parse_host(headers.get("host", "")) not in self.hosts:
            return await PlainTextResponse(self.format_refusal(), 400)(scope, receive, send)
        forwarded = read_forwarded_headers(headers)
        fixed = self.address or forwarded
        prefix, host = fixed.prefix, fixed.host or forwarded.host
        # Most proxies take the prefix off. One that keeps it shows in the path, unless the server's own
        # paths begin with the prefix.
        kept = prefix and prefix.removeprefix("/") not in self.own
        if kept and scope["path"] == prefix:  # the page's links are relative to its folder
            return await RedirectResponse(f"{prefix}/")(scope, receive, send)
        if not (kept and scope["path"].startswith(f"{prefix}/")):
            scope = {**scope, "path": prefix + scope["path"]}
        # gradio builds addresses from these and ignores the prefix: it gets the browser's host instead
        gone = {b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix", b"x-gradio-server"}
        rest = [
            pair for pair in scope["headers"] if pair[0] not in gone and not (host and pair[0] == b"host")
        ]
        scope = {
            **scope,
            "scheme": fixed.scheme or forwarded.scheme or scope["scheme"],
            "root_path": prefix,
            "headers": [*rest, (b"host", host.encode())] if host else rest,
        }
        await self.app(scope, receive, send)

    def format_refusal(self) -> str:
        """The reply to a request for a foreign host: the reason and what to do."""
        return (
            f"This page only accepts requests for the host {' or '.join(sorted(self.hosts))}. To use it from "
            "other machines, start app.py with --host 0.0.0.0: everyone who can reach this machine can then "
            "use it. Behind a proxy, let the proxy send one of these hosts, or start app.py with --root-path "
            "and the page's whole address.\n"
        )
