"""The page: drop a clip or record one, see its classes and why; /api/predict for programs."""

from __future__ import annotations

import inspect
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from earshot.app.address import Address, parse_address
from earshot.app.flags import PageFlags
from earshot.core import cli
from earshot.core.errors import UserError
from earshot.prediction import members

ABOUT = (
    "Serve a page that classifies audio, on this machine only; Ctrl-C stops it.\n"
    "\n"
    "  python app.py --run A                 a run or a kept blend at http://127.0.0.1:7860, its API "
    "described at /docs\n"
    "  python app.py --run A --host 0.0.0.0  the same for everyone who can reach this machine: there is no "
    "password"
)


def list_groups() -> dict[str, Any]:
    """Title -> defaults of the flags."""
    return {"page": PageFlags()}


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address; UserError where it is taken, or not an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen at {host}:{port} ({reason}): choose another --port or --host"
        ) from None
    return bound


def main(argv: list[str]) -> None:
    """Parse, open the run, serve."""
    filled, _ = cli.parse({"page": PageFlags()}, argv, ABOUT)
    flags = filled["page"]
    address = parse_address(flags.root_path) if flags.root_path is not None else None
    whole = members.open_members((flags.run,) if flags.run else (), flags.runs_folder)[0]
    print(f"opening {whole}", flush=True)  # importing torch and gradio takes seconds
    bound = bind_socket(flags.host, flags.port)
    with tempfile.TemporaryDirectory(prefix="earshot-page-") as scratch:
        # Gradio reads these when it is imported: nothing is sent or fetched, and uploads are deleted when
        # the page closes.
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False",
            GRADIO_TEMP_DIR=os.path.join(scratch, "uploads"),
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        serve(whole, flags, bound, address, Path(scratch))


def serve(
    whole: members.Member, flags: PageFlags, bound: socket.socket, address: Address | None, scratch: Path
) -> None:
    """Load the heads once, then serve until Ctrl-C; files of the page go to `scratch`."""
    try:
        import gradio
        import uvicorn
    except ImportError as error:
        raise UserError(f"the page needs {error.name}: pip install gradio") from None
    from earshot.app import api, ui
    from earshot.app.session import Session
    from earshot.app.upload_limits import UploadLimits
    from earshot.core import device
    from earshot.prediction.predictor import Predictor

    predictor = Predictor(whole, device.choose(flags.device), flags.weights)
    limits = UploadLimits(flags.max_seconds, round(flags.max_upload_mb * 1e6))
    session = Session(predictor, limits, whole.folder.name)
    if session.seen.warning:
        print(session.seen.warning, flush=True)
    report = Path(whole.folder) / "report.html"
    app = api.build(session, flags.host, report if report.is_file() else None, address)
    off = {
        name: False
        for name in ("show_error", "ssr_mode", "run_history", "pwa", "mcp_server")
        if name in inspect.signature(gradio.mount_gradio_app).parameters
    }  # releases differ in what can be switched off
    gradio.mount_gradio_app(
        app,
        ui.build(session, report.is_file(), scratch),
        path="/",
        footer_links=[],
        max_file_size=session.limits.size,
        theme=ui.build_theme(),
        css=ui.CSS,
        js=ui.JS,
        **off,
    )
    bound.listen(128)  # requests from here on wait until the server is up
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if flags.host not in api.LOOPBACK and flags.host != "::1":
        print(f"warning: anyone who can reach {flags.host} can use this page: it has no password", flush=True)
    behind = f"   behind a proxy at {flags.root_path}" if address else ""
    print(
        f"page: http://{shown}:{port}   API: http://{shown}:{port}/docs   (Ctrl-C ends it){behind}",
        flush=True,
    )
    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(
            sockets=[bound]
        )
    # uvicorn raises Ctrl-C again after it has closed
    except (KeyboardInterrupt, SystemExit):
        print("page closed")


if __name__ == "__main__":
    cli.run(main)
