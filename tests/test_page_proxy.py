"""The page below a path prefix: behind proxies that take it off or keep it, and their headers."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT, refused, script
from test_page_served import form, send

from earshot.app.address import parse_address
from earshot.core.errors import UserError

PREFIX = "/user/jo@lab/proxy/7860"


@contextmanager
def page(home: Path, *flags: str) -> Iterator[int]:
    """app.py as a user starts it; its port."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    command = [sys.executable, str(ROOT / "app.py"), "--run", "cnn", "--port", "0", *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(home)}
    process = subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline(), process.stdout.readline()]
    try:
        yield int(re.search(r"page: http://127\.0\.0\.1:(\d+) ", lines[1])[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@contextmanager
def proxy(port: int, prefix: str, takes_off: bool, **more: str) -> Iterator[str]:
    """A reverse proxy of the page below a prefix, with more headers; its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *ignored: object) -> None:
            pass

        def pass_on(self) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            dropped = ("host", "content-length", "accept-encoding", "connection")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
            headers |= {
                "Host": f"127.0.0.1:{port}",
                **{k.replace("_", "-"): v.format(host=self.headers["Host"]) for k, v in more.items()},
            }
            passed = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            passed.request(self.command, self.path[len(prefix) * takes_off :], body, headers)
            reply = passed.getresponse()
            data = reply.read()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_HEAD = pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()


def uploaded(address: str, clip: Path) -> str:
    """The page's reply to a clip, requested as in a browser: upload, queue, events."""
    config = json.loads(re.search(r"window.gradio_config = (\{.*?\});</script>", send(f"{address}/")[1])[1])
    root = config["root"]
    assert root == address
    body, kind = form("files", clip.read_bytes())
    status, text, _ = send(f"{root}/gradio_api/upload", body, content_type=kind)
    assert status == 200, text
    audio = next(one["id"] for one in config["components"] if one["type"] == "audio")
    predict = next(one for one in config["dependencies"] if [audio, "change"] in map(list, one["targets"]))
    sent = {
        "data": [{"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}],
        "fn_index": predict["id"],
        "session_hash": "s",
    }
    status, text, _ = send(
        f"{root}/gradio_api/queue/join", json.dumps(sent).encode(), content_type="application/json"
    )
    assert status == 200, text
    return send(f"{root}/gradio_api/queue/data?session_hash=s")[1]


def check_parts(address: str, home: Path) -> None:
    """Every part of the page works at its address below the prefix."""
    assert "tone2" in uploaded(address, home / "tone.wav")
    wave = (home / "tone.wav").read_bytes()
    status, text, _ = send(f"{address}/api/predict?top=1", wave, content_type="audio/wav")
    assert status == 200 and json.loads(text)["classes"][0]["class"] == "tone2"
    assert f"{address}/api/predict" in send(f"{address}/docs")[1]
    for path in ("/report", "/openapi.json", "/theme.css", "/config"):
        assert send(address + path)[0] == 200, path
    text = send(f"{address}/")[1]
    files = re.findall(r'(?:src|href)="\./((?:assets|static)/[^"]+)"', text)
    assert files and all(send(f"{address}/{file}")[0] == 200 for file in files[:5])


def test_without_a_flag(home: Path) -> None:
    """By the proxy's headers, whether it takes the prefix off or not; also without a proxy."""
    headers = {"X_Forwarded_Prefix": PREFIX + "/", "X_Forwarded_Host": "{host}"}
    with page(home) as port:
        with proxy(port, PREFIX, True, **headers) as address:
            check_parts(address, home)
        with proxy(port, "/earshot", False, **{**headers, "X_Forwarded_Prefix": "/earshot"}) as address:
            check_parts(address, home)
        check_parts(f"http://127.0.0.1:{port}", home)
        for prefix in ("/assets", "/gradio_api"):  # as the page's own paths begin
            with proxy(port, prefix, True, **{**headers, "X_Forwarded_Prefix": prefix}) as address:
                check_parts(address, home)
        with proxy(port, "/static/lab", False, **{**headers, "X_Forwarded_Prefix": "/static/lab"}) as address:
            check_parts(address, home)


@pytest.mark.slow
def test_with_the_flag(home: Path) -> None:
    """Which comes before the headers."""
    with page(home, "--root-path", PREFIX) as port:
        for takes_off in (True, False):
            with proxy(
                port, PREFIX, takes_off, X_Forwarded_Host="{host}", X_Forwarded_Prefix="/x"
            ) as address:
                check_parts(address, home)


def test_the_whole_address_as_a_flag(opened: dict, home: Path) -> None:
    """Its host is accepted beside this machine's, another is refused; no header is needed."""
    client = pytest.importorskip("starlette.testclient", reason="the page needs gradio").TestClient
    from earshot.app import api, session
    from earshot.app.upload_limits import UploadLimits

    with chdir(home):
        desk = session.Session(opened["cnn"], UploadLimits(20, 10**6), "cnn")
    at = client(api.build(desk, "127.0.0.1", None, parse_address("https://lab.example/earshot/")))
    for path in ("/docs", "/earshot/docs"):
        for host in ("lab.example", "localhost:7860"):
            text = at.get(path, headers={"host": host}).text
            assert "https://lab.example/earshot/api/predict" in text and "http://" not in text
    refusal = at.get("/docs", headers={"host": "other.example"})
    assert refusal.status_code == 400 and "--host" in refusal.text and "lab.example" in refusal.text
    assert refusal.headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
def test_in_a_browser_below_a_prefix(home: Path, chromium: object) -> None:
    with (
        page(home) as port,
        proxy(port, PREFIX, True, X_Forwarded_Prefix=PREFIX, X_Forwarded_Host="{host}") as at,
    ):
        view, wrong = chromium.new_page(), []
        view.set_default_timeout(30_000)
        view.on("response", lambda reply: wrong.append(reply.url) if reply.status >= 400 else None)
        view.goto(f"{at}/")
        view.wait_for_selector("#clip input[type=file]", state="attached")
        view.set_input_files("#clip input[type=file]", str(home / "tone.wav"))
        view.wait_for_selector("#classes h2:text-is('tone2')")
        view.wait_for_selector("#picture img")
        view.get_by_role("tab", name="API").click()
        view.wait_for_selector(f"#commands :text('{at}/api/predict')")
        with view.context.expect_page() as opened:
            view.click("#report")
        assert "what was reached" in opened.value.locator("h1").inner_text()
        opened.value.close()
        view.get_by_role("tab", name="Predict").click()
        view.click("#clip button[aria-label=Clear]")
        view.click("#examples button:has-text('tone1')")
        view.wait_for_selector(".seen")
        assert not wrong
        view.close()


def pass_through(address: str | None, path: str, *headers: tuple[str, str]) -> tuple[int, dict]:
    """The middleware's result: a status and headers, or 0 and the scope that it passes on."""
    from earshot.app.proxy import ProxyMiddleware

    found: list = []

    async def inside(scope: dict, receive: object, send: object) -> None:
        found.append((0, scope))

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            found.append((message["status"], {k.decode(): v.decode() for k, v in message["headers"]}))

    at = parse_address(address) if address is not None else None
    made = ProxyMiddleware(inside, at, {"127.0.0.1"}, {"api", "docs"})
    given = [(b"host", b"127.0.0.1:7"), *((k.encode(), v.encode("latin-1")) for k, v in headers)]
    scope = {"type": "http", "scheme": "http", "path": path, "headers": given, "root_path": ""}
    with suppress(StopIteration):  # nothing in it waits
        made(scope, None, send).send(None)
    return found[0]


@pytest.mark.parametrize(
    "header, prefix",
    [
        ("/a/b", "/a/b"),
        ("/a/", "/a"),
        ("/user/jo%40lab", "/user/jo@lab"),
        ("/user/%C3%A9", "/user/é"),
        ("/outer, /inner/", "/outer/inner"),
        *((bad, "") for bad in ("", "/", "a", "//evil.example", "/a//b", "https://evil.example/", "/a/../b")),
        *(
            (bad, "")
            for bad in ("/%2f/evil.example", "/\\evil.example", '/"><script>', "/a'b", "/a?b", "/a#b")
        ),
        *((bad, "") for bad in ("/a%0d%0aX: y", "/a%00", "/a%ff", "/a b", "/\xe9", "/a;b", "javascript:x")),
    ],
)
def test_a_prefix_from_outside_is_a_plain_path_or_nothing(header: str, prefix: str) -> None:
    status, scope = pass_through(None, "/config", ("x-forwarded-prefix", header))
    assert status == 0 and scope["root_path"] == prefix and scope["path"] == f"{prefix}/config"


def test_forwarded_headers() -> None:
    status, scope = pass_through(
        "/earshot",
        "/x",
        ("x-forwarded-host", "lab.example:8443, inner"),
        ("x-forwarded-proto", "https"),
        ("x-gradio-server", "http://evil.example"),
    )
    assert scope["headers"] == [(b"host", b"lab.example:8443")] and scope["scheme"] == "https"
    for bad in ("evil.example/path", 'a"b', "a@b", "a b", ""):
        assert pass_through(None, "/x", ("x-forwarded-host", bad))[1]["headers"] == [
            (b"host", b"127.0.0.1:7")
        ]
    assert pass_through(None, "/x", ("x-forwarded-proto", "javascript"))[1]["scheme"] == "http"
    # the prefix kept, the folder itself, a path of the page's own
    assert pass_through("/earshot", "/earshot/x")[1]["path"] == "/earshot/x"
    assert pass_through("/earshot", "/earshot") == (307, {"content-length": "0", "location": "/earshot/"})
    assert pass_through("/earshot", "/earshots")[1]["path"] == "/earshot/earshots"
    assert pass_through("/api", "/api/predict")[1]["path"] == "/api/api/predict"
    assert pass_through("/api/earshot", "/api/earshot/api/predict")[1]["path"] == "/api/earshot/api/predict"
    assert pass_through("/api/earshot", "/api/predict")[1]["path"] == "/api/earshot/api/predict"


@pytest.mark.parametrize(
    "given", ["earshot", "//lab", "/a b", "ftp://lab/a", "https://", "https://jo@lab/", "/a?b"]
)
def test_a_flag_that_is_no_path(given: str) -> None:
    with pytest.raises(UserError, match="--root-path .* such as /earshot"):
        parse_address(given)


def test_a_wrong_flag_is_one_line(home: Path) -> None:
    assert "/earshot" in refused(script("app.py", "--run", "cnn", "--root-path", "a b", cwd=home, ok=None))
