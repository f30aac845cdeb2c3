"""The page as it is served: its API, what it refuses, and a real browser."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, refused, script


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The page of the run cnn, as a user starts it; its address."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    command = [
        sys.executable,
        str(ROOT / "app.py"),
        "--run",
        "cnn",
        "--port",
        "0",
        "--max-seconds",
        "20",
        "--max-upload-mb",
        "0.3",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(home)}
    process = subprocess.Popen(
        command, cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = [process.stdout.readline(), process.stdout.readline()]
    address = re.search(r"page: (http://127\.0\.0\.1:\d+) ", said[1])
    assert said[0].startswith("opening runs/cnn") and address, said + [
        process.stdout.read() if process.poll() is not None else ""
    ]
    assert list(home.glob("earshot-page-*"))
    yield address[1]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == "page closed\n", rest
    assert not list(home.glob("earshot-*")), "uploads go when the page does"


def ask(
    url: str, body: bytes | Iterator[bytes] | None = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of a reply; POST where there is a body."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as reply:
            return reply.status, reply.read().decode(), dict(reply.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def form(name: str, content: bytes) -> tuple[bytes, str]:
    """A multipart body with one file, and its content type."""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="../../a.wav"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def test_the_api_answers_classes(server: str, home: Path, opened: dict) -> None:
    wave = (home / "long.wav").read_bytes()
    raw = json.loads(ask(f"{server}/api/predict?top=1", wave, content_type="audio/wav")[1])
    body, kind = form("audio", wave)
    status, text, _ = ask(f"{server}/api/predict?top=1", body, content_type=kind)
    sent = json.loads(text)
    assert status == 200 and raw.pop("milliseconds") > 0 < sent.pop("milliseconds") and raw == sent
    found = opened["cnn"].predict_file(home / "long.wav").probabilities
    assert raw["classes"] == [{"class": f"tone{found.argmax()}", "probability": round(float(found.max()), 6)}]
    assert [w["classes"][0]["class"] for w in raw["windows"]] == ["tone0", "tone1", "tone2"]
    assert raw["run"] == "cnn" and raw["seconds"] == 3.0


def test_the_api_refuses_in_a_line(server: str, home: Path) -> None:
    url = f"{server}/api/predict"
    large = b"RIFF" + bytes(300_001)
    bad = {
        "bad.wav": "no audio file",
        "list.m3u8": "no audio file",
        "hours.flac": "longer than 20 s",
        "silent.wav": "silent",
    }
    cases = [((home / name).read_bytes(), "audio/wav", 422, reason) for name, reason in bad.items()]
    cases += [
        (b"", "audio/wav", 422, "empty"),
        (large, "audio/wav", 413, "larger than 0.3 MB"),
        (form("other", b"x")[0], form("", b"")[1], 422, "no file named audio"),
        (form("audio", bytes(400_000))[0], form("", b"")[1], 413, "larger than 0.3 MB"),
        (b"--y", "multipart/form-data; boundary=x", 422, "form"),
        (b"--x", "multipart/form-data", 422, "form"),
    ]
    for body, kind, status, reason in cases:
        found = ask(url, body, content_type=kind)
        assert found[0] == status and list(json.loads(found[1])) == ["error"] and reason in found[1], found
    # A body without a length is counted as it comes.
    assert (
        ask(url, iter([large[:1000]] * 400), content_type="audio/wav", transfer_encoding="chunked")[0] == 413
    )
    assert ask(f"{url}?top=0", (home / "tone.wav").read_bytes(), content_type="audio/wav")[0] == 422
    assert not [p for p in home.glob("earshot-*") if p.is_file()], "what was refused is not kept"


def test_nothing_comes_from_elsewhere_and_nothing_else_goes_out(server: str) -> None:
    for path in ("/", "/docs", "/openapi.json"):
        status, text, headers = ask(server + path)
        assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
    text = ask(f"{server}/docs")[1]
    assert (
        "/api/predict" in text
        and set(re.findall(r"https?://[^/\s\"]+", text)) == {server}
        and "<script" not in text
    )
    assert "/api/predict" in json.loads(ask(f"{server}/openapi.json")[1])["paths"]
    status, text, _ = ask(f"{server}/docs", host="evil.example")
    assert status == 400 and "--host" in text and "--root-path" in text, (
        "a name that leads here is not its own"
    )
    assert ask(f"{server}/report")[2]["content-security-policy"].startswith("sandbox")
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=runs/cnn/config.yaml",
        "/static/../../etc/passwd",
    ):
        assert ask(server + path)[0] in (403, 404)


def test_what_cannot_be_served_is_one_line(server: str, home: Path) -> None:
    assert "no run" in refused(script("app.py", "--run", "none", cwd=home, ok=None))
    port = server.rpartition(":")[2]
    assert "choose another --port" in refused(
        script("app.py", "--run", "cnn", "--port", port, cwd=home, ok=None)
    )
    done = script("app.py", "--run", "cnn", "--longest", "0", cwd=home, ok=None)
    assert "--max-seconds 0" in refused(done), "the former name still works"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_in_a_browser(server: str, home: Path, chromium: object, width: int) -> None:
    """Upload a clip, see its class, its windows, the evidence, the feature maps; a bad file's message; the
    other tabs."""
    page = chromium.new_page(viewport={"width": width, "height": 850})
    page.set_default_timeout(30_000)
    asked, broken = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(server)

    def upload(name: str) -> None:
        page.set_input_files("#clip input[type=file]", str(home / name))

    page.wait_for_selector("#clip input[type=file]", state="attached")
    upload("bad.wav")
    assert "no audio file" in page.locator(".refused").inner_text()
    page.click("#clip button[aria-label=Clear]")
    page.wait_for_selector(".refused", state="detached")
    upload("long.wav")
    page.wait_for_selector("#picture img")
    assert (
        re.match(r"tone\d", page.locator("#classes .first").inner_text())
        and "3 windows" in page.locator("#said").inner_text()
    )
    page.click("#evidence")
    page.wait_for_selector("#shown img[alt^=evidence]")
    page.click("#layers")
    page.wait_for_selector("#shown .maps img")
    assert page.locator("#shown > * .maps").first.locator("img").count() == 3
    page.click("#shown summary >> nth=0")
    assert page.locator("img[alt='feature map layer1.block0.relu']").is_visible()
    page.click("#clip button[aria-label=Clear]")
    upload("tone.wav")
    page.wait_for_selector("#classes .first:text-is('tone2')")
    assert page.locator(".learnt").count() == 0
    page.click("#clip button[aria-label=Clear]")
    upload("tones/audio_train/004.wav")
    page.wait_for_selector(".learnt")
    rows = [line.split(",") for line in (home / "runs" / "cnn" / "oof_last.csv").read_text().splitlines()]
    fold, shares = next((row[1], row[3:]) for row in rows if row[0] == "004.wav")
    best = max(range(3), key=lambda kind: float(shares[kind]))
    assert (
        page.locator(".learnt")
        .inner_text()
        .endswith(f"(fold {fold}) predict {rows[0][3 + best]} {float(shares[best]):.3f}.")
    )
    page.get_by_role("tab", name="Report").click()
    assert "what was reached" in page.frame_locator("iframe.report").locator("h1").inner_text()
    assert "ran" not in page.title(), "a report runs no script"
    page.get_by_role("tab", name="API").click()
    assert page.locator("a[href=docs]").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    elsewhere = {url for url in asked if not url.startswith((server, "data:", "blob:"))}
    assert not elsewhere and not broken
    page.close()
