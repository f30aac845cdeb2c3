"""The web server: /api/predict and its reference, the run's report, and the security headers."""

from __future__ import annotations

import logging
import os
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from earshot.app.address import Address, parse_host
from earshot.app.proxy import ProxyMiddleware
from earshot.app.session import Session
from earshot.audio.load import BadAudio
from earshot.core.errors import TemporaryError

LOOPBACK = ("127.0.0.1", "localhost")
SLACK = 1 << 16  # bytes of a multipart body besides the file
# What gradio's paths begin with; it is mounted later, and its routes are no plain list.
PAGE = ("gradio_api", "assets", "static", "svelte", "custom_component", "login", "monitoring", "pwa_icon")
NAMED = 12  # classes in the description
# Nothing is fetched from other servers, even where a library's page asks for it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' "
    "data: blob:; worker-src 'self' blob:; object-src 'none'; form-action 'self'"
)
# A report may be an untrusted file: it runs no script and fetches nothing.
SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["audio"],
                "properties": {"audio": {"type": "string", "format": "binary"}},
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


class _UploadTooLarge(Exception):
    pass


class SecurityHeaders:
    """ASGI middleware: every response without a policy of its own gets the page's."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass on, adding headers."""

        async def adding(message: dict) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                extra = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                if b"content-security-policy" not in names:
                    extra.append((b"content-security-policy", POLICY.encode()))
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, adding if scope["type"] == "http" else send)


def build(session: Session, host: str, report: Path | None, address: Address | None = None) -> FastAPI:
    """The server without the page.

    Args:
        host: where it will listen. On this machine alone, requests for other host names are refused: a
            foreign name server could otherwise lead a browser here.
        report: the run's report.html, where it exists.
        address: where a proxy serves the page (--root-path); requests for its host are accepted, too.
    """
    # a broken form gets a reply, it is no news for the terminal
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    app = FastAPI(
        title="Earshot",
        description="Send audio, get class probabilities as JSON.",
        docs_url=None,
        redoc_url=None,
    )

    @app.post("/api/predict", summary="Classify an audio file", openapi_extra={"requestBody": BODY})
    async def predict(request: Request, top: int = 3) -> JSONResponse:
        """The likeliest classes of a clip and of each of its windows."""
        if not 1 <= top <= 10000:
            return _refuse(422, "top must be a whole number from 1 to 10000")
        handle, name = tempfile.mkstemp(prefix="earshot-")
        try:
            with os.fdopen(handle, "wb") as file:
                sent = await _receive_upload(request, session.limits.size, file)
            return JSONResponse(await run_in_threadpool(session.predict_json, name, top, sent))
        except _UploadTooLarge:
            return _refuse(413, session.limits.describe_too_large())
        except BadAudio as error:
            return _refuse(422, str(error))
        except TemporaryError as error:
            return _refuse(503, f"the server failed, not the clip; try again later ({error})")
        finally:
            os.unlink(name)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs(request: Request) -> str:
        return _render_docs(session, str(request.base_url).rstrip("/"))

    if report is not None:

        @app.get("/report", include_in_schema=False)
        def show_report() -> HTMLResponse:
            return HTMLResponse(report.read_bytes(), headers={"content-security-policy": SANDBOX})

    hosts = {*LOOPBACK, *([parse_host(address.host)] if address and address.host else [])}
    own = {*PAGE, *(route.path.split("/")[1] for route in app.routes)}
    app.add_middleware(ProxyMiddleware, address=address, hosts=hosts if host in LOOPBACK else (), own=own)
    app.add_middleware(SecurityHeaders)
    return app


def list_commands(base: str) -> list[str]:
    """Commands that call the API; `base` is the page's address, without a slash at its end."""
    return [
        f"curl --data-binary @clip.wav {base}/api/predict",
        f'curl -F audio=@clip.wav "{base}/api/predict?top=5"',
    ]


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status)


async def _receive_upload(request: Request, most: int, file: Any) -> str:
    """Write the upload of a request to a file: the field `audio` of a form, or the whole body.

    Returns:
        the upload's file name, "" for a body.
    Raises:
        _UploadTooLarge: as soon as more than `most` bytes came. BadAudio: an invalid form.
    """
    form = request.headers.get("content-type", "").startswith("multipart/form-data")
    allowed = most + (SLACK if form else 0)
    if int(request.headers.get("content-length") or 0) > allowed:
        raise _UploadTooLarge
    counted = 0

    async def receive() -> dict:
        nonlocal counted
        message = await request.receive()
        counted += len(message.get("body", b""))
        if counted > allowed:
            raise _UploadTooLarge
        return message

    limited = Request(request.scope, receive)
    if not form:
        async for block in limited.stream():
            file.write(block)
        return ""
    try:
        async with limited.form(max_files=1, max_fields=8) as fields:
            upload = fields.get("audio")
            if not isinstance(upload, UploadFile):
                raise BadAudio("the form has no file named audio")
            while block := await upload.read(1 << 20):
                file.write(block)
            return upload.filename or ""
    except _UploadTooLarge:
        raise
    except BadAudio:
        raise
    except Exception as error:  # an invalid form
        raise BadAudio(
            f"invalid form: {' '.join(str(getattr(error, 'detail', error)).split())[:100]}"
        ) from None


def _render_docs(session: Session, base: str) -> str:
    """The API's reference: one page, nothing fetched."""
    classes = session.predictor.classes
    first, named = (
        escape(classes[0]),
        escape(", ".join(classes[:NAMED])) + ("" if len(classes) <= NAMED else ", …"),
    )
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Earshot: API</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>
body{{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;background:#fff;
  max-width:46rem;margin:2rem auto;padding:0 1rem}}
pre{{background:#f5f5f5;padding:.8rem;overflow-x:auto;font-size:.85rem}}
td,th{{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}}
code{{background:#f5f5f5}}</style></head><body>
<h1>Earshot: API</h1>
<p>The run is <b>{escape(session.name)}</b>, its {len(classes)} classes are {named}.
Audio is {escape(str(session.limits))}: WAV, FLAC, OGG, MP3, M4A and others.</p>
<h2>POST /api/predict?top=3</h2>
<p>The body is the audio file itself, or a form with a file named <code>audio</code>.
<code>top</code> is the number of classes in the reply.</p>
<pre>{escape(chr(10).join(list_commands(base)))}</pre>
<p>The reply, status 200:</p>
<pre>{{"run": "{escape(session.name)}", "seconds": 5.0,
 "classes": [{{"class": "{first}", "probability": 0.98}}, …],
 "windows": [{{"start": 0.0, "length": 5.0, "classes": […]}}],
 "milliseconds": 21.4}}</pre>
<p>If the audio is a training clip, a <code>"warning"</code> is added: its prediction is optimistic.</p>
<table><tr><th>status</th><th>body</th></tr>
<tr><td>413</td><td><code>{{"error": "{escape(session.limits.describe_too_large())}"}}</code></td></tr>
<tr><td>422</td><td><code>{{"error": "why the file can't be read, in one line"}}</code></td></tr></table>
<p>Machine-readable: <a href="openapi.json">openapi.json</a>. The page: <a href="./">/</a>.</p>
</body></html>"""
