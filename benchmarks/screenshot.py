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


def main() -> None:
    """Open the page, upload, look."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--clip", required=True, help="an audio file")
    parser.add_argument("--out", default=str(ROOT / "docs" / "page.png"))
    parser.add_argument("--width", type=int, default=1000)
    flags = parser.parse_args()
    from PIL import Image
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("error: no Chromium here: apt install chromium")
    command = [sys.executable, str(ROOT / "app.py"), "--run", flags.run, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        address = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        with sync_playwright() as started:
            page = started.chromium.launch(executable_path=browser, args=FLAGS).new_page(
                viewport={"width": flags.width, "height": 700}
            )
            page.goto(address)
            page.set_input_files("#clip input[type=file]", flags.clip)
            page.wait_for_selector("#picture img")
            page.click("#evidence")
            page.wait_for_selector("#shown img")
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)  # for what fades in
            picture = page.screenshot(full_page=True)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    # 256 colours: a third of the bytes.
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(
        256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(flags.out, optimize=True)
    print(f"{flags.out}: {Path(flags.out).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
