"""The picture at the top of README: the terminal, the report and the page of one run -> docs/readme.png.

    python benchmarks/readme_picture.py --data ESC10 --weights mn04_as_mAP_432.pt
    python benchmarks/readme_picture.py         # the quickstart on the sample competition

It runs the commands in a new folder and takes pictures of what comes out. With --data the competition is
ESC-10 with fold 5 to be submitted, as benchmarks/first_submission.py cuts it. Needs a Chromium
(apt install chromium) and playwright, which drives it.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT
from screenshot import find_browser, open_page, shrink

SAMPLE = ("get_features.py", "train.py --recipe svm")
REAL = (
    "get_features.py --competition data/esc10-cut --extractor efficientat --weights mn04_as_mAP_432.pt",
    "train.py --recipe linear --name esc10",
)
# Lines of the output that a picture has room for, by how they begin.
SHOWN = ("layout", "train.csv", "train: ", "subm", "views: ", "head: ", "out-of-fold", "  last", "report: ")
PAGE = """<style>
body {{ margin: 0; padding: 24px; width: 2000px; background: #e9eef2; display: flex; gap: 24px;
  font: 15px/1.5 sans-serif; box-sizing: border-box; height: 800px }}
div {{ flex: 1; background: #fff; border-radius: 10px; overflow: hidden; box-shadow: 0 2px 12px #0003 }}
div.terminal {{ background: #16202a; color: #dbe5ee; flex: 1.15 }}
h1 {{ margin: 0; padding: 7px 14px; background: #cfd8e0; color: #333; font-size: 15px; font-weight: 600 }}
pre {{ margin: 0; padding: 16px; font: 17px/1.6 "DejaVu Sans Mono", monospace; white-space: pre-wrap }}
b {{ color: #7fd1ff; font-weight: 600 }}
img {{ width: 100%; display: block }}
</style>
<div class="terminal"><h1>terminal</h1><pre>{terminal}</pre></div>
<div><h1>runs/{run}/report.html</h1><img src="data:image/png;base64,{report}"></div>
<div><h1>python app.py</h1><img src="data:image/png;base64,{page}"></div>"""


def run_commands(folder: Path, commands: tuple[str, ...]) -> str:
    """Run them in a folder; what the terminal shows, as HTML."""
    lines = []
    for command in commands:
        script, *flags = command.split()
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *flags],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lines.append(f"<b>$ python {html.escape(command)}</b>")
        lines += [html.escape(line) for line in done.stdout.splitlines() if line.startswith(SHOWN)]
    first = (folder / "submissions" / "submission.csv").read_text(encoding="utf-8").splitlines()[:4]
    return "\n".join([*lines, "<b>$ head -4 submissions/submission.csv</b>", *map(html.escape, first)])


def main() -> None:
    """Run, look, compose."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="ESC-10's folder")
    parser.add_argument("--weights", type=Path, help="EfficientAT's mn04_as_mAP_432.pt")
    parser.add_argument("--out", default=str(ROOT / "docs" / "readme.png"))
    flags = parser.parse_args()
    from playwright.sync_api import sync_playwright

    browser = find_browser()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if flags.data:
            from first_submission import cut_competition

            cut_competition(flags.data.absolute(), folder / "data" / "esc10-cut")
            (folder / "mn04_as_mAP_432.pt").symlink_to(flags.weights.absolute())
        terminal = run_commands(folder, REAL if flags.data else SAMPLE)
        (run,) = (path for path in (folder / "runs").iterdir() if (path / "report.html").is_file())
        clip = sorted(next((folder / "data").glob("*/audio_test")).iterdir())[0]
        os.chdir(folder)  # app.py takes the only run of runs/
        page = open_page(f"runs/{run.name}", str(clip), width=900, height=1250, full_page=False)
        with sync_playwright() as started:
            window = started.chromium.launch(**browser)
            view = window.new_page(viewport={"width": 900, "height": 1150})
            view.goto(f"file://{run / 'report.html'}")
            report = view.screenshot()
            view = window.new_page(viewport={"width": 2000, "height": 800})
            view.set_content(
                PAGE.format(
                    terminal=terminal,
                    run=run.name,
                    report=base64.b64encode(report).decode(),
                    page=base64.b64encode(page).decode(),
                )
            )
            picture = view.screenshot()
            window.close()
        os.chdir(ROOT)
    shrink(io.BytesIO(picture), flags.out)


if __name__ == "__main__":
    main()
