"""A picture of the page in a real browser, with a clip predicted and explained -> docs/page.png.

    python benchmarks/screenshot.py --run runs/small_cnn --clip CLIP.ogg

Needs a Chromium (apt install chromium) and playwright, which drives it.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from common import ROOT

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]


def find_browser() -> dict:
    """How playwright launches the Chromium of this machine."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("error: no Chromium here: apt install chromium")
    return {"executable_path": browser, "args": FLAGS}


def open_page(run: str, clip: str, width: int, height: int = 700, full_page: bool = True) -> bytes:
    """Open the page of a run, upload a clip, ask why: a PNG."""
    from playwright.sync_api import sync_playwright

    browser = find_browser()
    command = [sys.executable, str(ROOT / "app.py"), "--run", run, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        address = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        with sync_playwright() as started:
            page = started.chromium.launch(**browser).new_page(viewport={"width": width, "height": height})
            page.goto(address)
            page.set_input_files("#clip input[type=file]", clip)
            page.wait_for_selector("#picture img, #picture svg")
            page.click("#evidence")
            page.wait_for_selector("#shown img, #shown svg", timeout=120_000)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)  # for what fades in
            page.evaluate("window.scrollTo(0, 0)")
            return page.screenshot(full_page=full_page)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def shrink(picture: io.BytesIO, out: str) -> None:
    """Write a PNG with 256 colours: a third of the bytes."""
    from PIL import Image

    Image.open(picture).convert("RGB").quantize(
        256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(out, optimize=True)
    print(f"{out}: {Path(out).stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Open the page, upload, look."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--clip", required=True, help="an audio file")
    parser.add_argument("--out", default=str(ROOT / "docs" / "page.png"))
    parser.add_argument("--width", type=int, default=1000)
    flags = parser.parse_args()
    shrink(io.BytesIO(open_page(flags.run, flags.clip, flags.width)), flags.out)


if __name__ == "__main__":
    main()
