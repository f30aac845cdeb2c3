"""New candidates of the bake-off beside those that they compete with, on several data sets -> RESULTS.md.

    python benchmarks/candidates.py --data ESC10 FSDD --weights mn04_as_mAP_432.pt [--only WAY ...]

FSDD is a folder of spoken digits with a column of speakers, which no two folds share.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import RESULTS, keep_rows, machine, timed
from pooling import HEADER, measure

ABOUT = [
    "`python benchmarks/candidates.py --data ESC10 FSDD --weights mn04_as_mAP_432.pt`: out of fold, last",
    "epoch. Folds of FSDD: other speakers. Log-mel as recipe `from_scratch` has it. The modulations' rates,",
    "scales and areas were set after looking at fold 1 of both sets, `blocks` as well; their sections after",
    "all folds of FSDD.",
]
MODULATIONS = ["--head.modulations", "true"]
WAYS = {
    ("logmel", "mel"): {
        "svm": ["svm"],
        "svm, modulations": ["svm", *MODULATIONS],
        "logistic": ["logistic"],
        "logistic, modulations": ["logistic", *MODULATIONS],
        "modulations": ["modulations"],
        "patches": ["patches"],
        "patches, modulations": ["patches", *MODULATIONS],
    },
    ("efficientat", "pooled"): {name: [name] for name in ("logistic", "svm", "linear")},
    ("efficientat", "blocks"): {name: [name] for name in ("logistic", "svm", "linear")},
}


def main() -> None:
    """Extract, train every way; the table is written after each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of ESC-10 and FSDD")
    parser.add_argument("--weights", type=Path, required=True, help="mn04_as_mAP_432.pt")
    parser.add_argument("--only", nargs="+", help="ways, as in the table")
    parser.add_argument("--views", nargs="+", help="views, as in the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    extraction = {
        "efficientat": ["--extractor", "efficientat", "--weights", str(flags.weights.resolve())],
        "logmel": ["--recipe", "from_scratch", "--cache", "logmel"],
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for data in flags.data:
            for (extractor, view), ways in WAYS.items():
                ways = {name: way for name, way in ways.items() if not flags.only or name in flags.only}
                if not ways or flags.views and view not in flags.views:
                    continue
                competition = ["--competition", str(data.resolve())]
                timed("get_features.py", [*competition, *extraction[extractor]], scratch)
                cache = scratch / "data" / data.resolve().name / extractor
                for name, way in ways.items():
                    cells, seconds = measure(cache, view, way, 1, scratch)
                    key = f"{data.resolve().name}, `{view}`, {name}"
                    row = f"| {key} | {cells} | {seconds:.0f} |"
                    keep_rows(f"Candidates on {machine()}", ABOUT, HEADER, {key: row}, flags.out)
                    print(row, flush=True)


if __name__ == "__main__":
    main()
