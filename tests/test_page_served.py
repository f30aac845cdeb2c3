"""The page as it is served: its API, refusals, and the page in a real browser."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def serve(home: Path, run: str, *flags: str) -> Iterator[str]:
    """The page of a run, as a user starts it; its address."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    command = [sys.executable, str(ROOT / "app.py"), "--run", run, "--port", "0", *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(home)}
    process = subprocess.Popen(
        command, cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = [process.stdout.readline(), process.stdout.readline()]
    address = re.search(r"page: (http://127\.0\.0\.1:\d+) ", lines[1])
    assert lines[0].startswith(f"opening runs/{run}") and address, lines + [
        process.stdout.read() if process.poll() is not None else ""
    ]
    try:
        yield address[1]
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == "page closed\n", rest


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The address of the page of the run cnn."""
    with serve(home, "cnn", "--max-seconds", "20", "--max-upload-mb", "0.3") as address:
        assert list(home.glob("earshot-page-*"))
        yield address
    assert not list(home.glob("earshot-*")), "uploads are deleted when the page closes"


def send(
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


def test_the_api_replies_with_classes(server: str, home: Path, opened: dict) -> None:
    wave = (home / "long.wav").read_bytes()
    raw = json.loads(send(f"{server}/api/predict?top=1", wave, content_type="audio/wav")[1])
    body, kind = form("audio", wave)
    status, text, _ = send(f"{server}/api/predict?top=1", body, content_type=kind)
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
        "bad.wav": "not an audio file",
        "list.m3u8": "not an audio file",
        "hours.flac": "longer than 20 s",
        "silent.wav": "silent",
    }
    cases = [((home / name).read_bytes(), "audio/wav", 422, reason) for name, reason in bad.items()]
    cases += [
        (b"", "audio/wav", 422, "empty"),
        (large, "audio/wav", 413, "larger than 0.3 MB"),
        (form("other", b"x")[0], form("", b"")[1], 422, "no file named audio"),
        (form("audio", bytes(400_000))[0], form("", b"")[1], 413, "larger than 0.3 MB"),
        (b"--y", "multipart/form-data; boundary=x", 422, "invalid form"),
        (b"--x", "multipart/form-data", 422, "invalid form"),
    ]
    for body, kind, status, reason in cases:
        found = send(url, body, content_type=kind)
        assert found[0] == status and list(json.loads(found[1])) == ["error"] and reason in found[1], found
    # A body without a length is counted as it comes.
    assert (
        send(url, iter([large[:1000]] * 400), content_type="audio/wav", transfer_encoding="chunked")[0] == 413
    )
    assert send(f"{url}?top=0", (home / "tone.wav").read_bytes(), content_type="audio/wav")[0] == 422
    assert not [p for p in home.glob("earshot-*") if p.is_file()], "refused uploads are not kept"


def test_nothing_is_fetched_from_elsewhere_and_no_other_file_is_served(server: str) -> None:
    for path in ("/", "/docs", "/openapi.json"):
        status, text, headers = send(server + path)
        assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
    text = send(f"{server}/docs")[1]
    assert (
        "/api/predict" in text
        and set(re.findall(r"https?://[^/\s\"]+", text)) == {server}
        and "<script" not in text
    )
    assert "/api/predict" in json.loads(send(f"{server}/openapi.json")[1])["paths"]
    status, text, _ = send(f"{server}/docs", host="evil.example")
    assert status == 400 and "--host" in text and "--root-path" in text, "a foreign host name is refused"
    assert send(f"{server}/report")[2]["content-security-policy"].startswith("sandbox")
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=runs/cnn/config.yaml",
        "/static/../../etc/passwd",
    ):
        assert send(server + path)[0] in (403, 404)


def test_errors_at_the_start_are_one_line(server: str, home: Path) -> None:
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
    """Examples, a clip with its class, events, evidence and feature maps, bad files, the report, the API."""
    page = chromium.new_page(viewport={"width": width, "height": 850})
    page.set_default_timeout(30_000)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server)

    def upload(name: str) -> None:
        page.set_input_files("#clip input[type=file]", str(home / name))

    page.wait_for_selector("#clip input[type=file]", state="attached")
    examples = page.locator("#examples button", has_text="tone")
    examples.nth(2).wait_for()
    assert examples.count() == 3, "one of each class"
    page.set_input_files("#clip input[type=file]", str(ROOT / "README.md"))
    toast = page.get_by_text("Can't read this file: README.md is not an audio file")
    toast.wait_for()
    assert page.get_by_text("audio/x-wav").count() == 0
    page.get_by_test_id("toast-close").click()
    upload("bad.wav")
    assert page.locator(".refused").inner_text().startswith("Can't read this file: not an audio file")
    page.click("#clip button[aria-label=Clear]")
    page.wait_for_selector(".refused", state="detached")
    upload("long.wav")
    page.wait_for_selector("#picture img")
    assert re.match(r"tone\d", page.locator("#classes h2").inner_text())
    assert re.search(r"\d%", page.locator("#classes").inner_text())
    assert "3 windows" in page.locator("#status").inner_text()
    page.wait_for_selector("#events [data-testid^=cell]:has-text('tone1')")
    cells = [text.strip() for text in page.locator("#events [data-testid^=cell]").all_inner_texts()]
    at = cells.index("tone1")
    assert cells[at + 1 : at + 3] == ["1.0 s", "2.0 s"] and cells[at + 3].endswith("%"), cells
    assert page.locator("#examples").count() == 0, "examples make room for the picture"
    page.click("#evidence")
    page.wait_for_selector("#shown img[alt^=evidence]")
    page.click("#layers")
    page.wait_for_selector("#shown .maps img")
    assert page.locator("#shown > * .maps").first.locator("img").count() == 3
    page.click("#shown summary >> nth=0")
    assert page.locator("img[alt='feature map layer1.block0.relu']").is_visible()
    page.click("#clip button[aria-label=Clear]")
    upload("tone.wav")
    page.wait_for_selector("#classes h2:text-is('tone2')")
    page.wait_for_selector("#events", state="detached")
    assert page.locator(".seen").count() == 0
    page.click("#clip button[aria-label=Clear]")
    page.click("#examples button:has-text('tone1')")
    page.wait_for_selector("#classes h2")
    page.wait_for_selector(".seen")
    page.click("#clip button[aria-label=Clear]")
    page.wait_for_selector(".seen", state="detached")
    upload("tones/audio_train/004.wav")
    page.wait_for_selector(".seen")
    rows = [line.split(",") for line in (home / "runs" / "cnn" / "oof_last.csv").read_text().splitlines()]
    fold, shares = next((row[1], row[3:]) for row in rows if row[0] == "004.wav")
    best = max(range(3), key=lambda kind: float(shares[kind]))
    assert (
        page.locator(".seen")
        .inner_text()
        .endswith(f"(fold {fold}) predict {rows[0][3 + best]} {float(shares[best]):.0%}.")
    )
    with page.context.expect_page() as opened:
        page.click("#report")
    report = opened.value
    assert "what was reached" in report.locator("h1").inner_text()
    assert "ran" not in report.title(), "a report runs no script"
    report.close()
    page.get_by_role("tab", name="API").click()
    assert page.locator("a[href=docs]").is_visible()
    page.wait_for_selector(f"#commands :text('{server}/api/predict')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    elsewhere = {url for url in requests if not url.startswith((server, "data:", "blob:"))}
    assert not elsewhere and not errors
    page.close()


@pytest.mark.slow
def test_mistakes_in_a_browser(home: Path, chromium: object) -> None:
    """The tab opens on the worst one; Next, Previous and the class filter go through the list."""
    from earshot.app.mistakes import find_mistakes
    from earshot.prediction import members

    with contextlib.chdir(home):
        found = find_mistakes(members.open_members(("lin",), "runs")[0])[0]
    assert len(found) > 2
    with serve(home, "lin") as address:
        page = chromium.new_page()
        page.set_default_timeout(30_000)
        page.goto(address)
        page.get_by_role("tab", name="Mistakes").click()

        def wait_for(index: int) -> None:
            page.wait_for_selector(f"#about p:has-text('{found[index].id}: true label {found[index].truth}')")

        wait_for(0)
        page.wait_for_selector("#about img")
        page.click("#next")
        wait_for(1)
        page.click("#previous")
        wait_for(0)
        page.click("#previous")
        wait_for(len(found) - 1)
        name = found[1].truth
        page.click("#kind input")
        page.get_by_role("option", name=name, exact=True).click()
        some = [index for index, one in enumerate(found) if name in (one.truth, one.predicted)]
        wait_for(some[0])
        page.click("#next")
        wait_for(some[1 % len(some)])
        page.close()
