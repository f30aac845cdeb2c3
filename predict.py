"""Stage 3: saved runs -> a submission, or the classes of any audio file."""

from __future__ import annotations

from pathlib import Path

from earshot import cli, config, kept, members
from earshot.errors import UserError
from earshot.members import Member
from earshot.run import Run

ABOUT = """Predict with saved runs.

  python predict.py --runs A B                 the competition's clips -> submissions/submission.csv
  python predict.py --runs A B --blend auto    the same with fitted weights; --name C keeps the blend as runs/C
  python predict.py --runs A --audio FOLDER    a folder of new audio -> submissions/predictions.csv
  python predict.py --runs A FILE ...          the likeliest classes of loose files, on the terminal"""


def predict_cached(whole: Member, features: str | None, out: Path, device) -> None:
    """The submission for the clips that the caches hold."""
    import numpy as np

    import models
    from earshot import blend, stage

    runs = whole.runs()
    caches = {run.folder.resolve(): blend.cache_of(run, features) for run in runs}
    cache = caches[runs[0].folder.resolve()]
    blend.same_clips(runs, list(caches.values()))
    for each in caches.values():
        if not each.has("subm"):
            print(f"nothing to submit: {each.folder} has no clips without labels")
            return
    ids = cache.split("subm")["ids"]

    def ask(run: Run, kind: str) -> np.ndarray:
        rows = blend.rows_of(caches[run.folder.resolve()], "subm", run.config["record"]["view"], device)
        place = {str(id): index for index, id in enumerate(rows.ids)}
        found = blend.predict_run(run, rows, models.rebuild, stage.decided(run, device), kind=kind)
        print(f"{run.folder}: {len(run.finished_folds())} folds, {len(ids)} clips")
        return found[[place[str(id)] for id in ids]]

    for line in stage.submit(cache, ids, whole.predict(ask), np.array(runs[0].config["prior"]), whole.classes, out):
        print(line)


def predict_audio(whole: Member, flags: config.PredictFlags, paths: list[str], show: bool, out: Path, device) -> None:
    """Predictions for new audio: as a csv, or shown."""
    import numpy as np

    import models
    from earshot import blend, loose, stage, submission
    from earshot.dataset import Rows

    classes, first, reasons = whole.classes, whole.runs()[0], {}
    ids, files = loose.listed(paths)

    def ask(run: Run, kind: str) -> np.ndarray:
        split, span, bad = loose.features(run, ids, files, flags.weights, device)
        reasons.update(bad)
        rows = Rows(split, run.config["record"]["view"], classes, span, device.name)
        return blend.predict_run(run, rows, models.rebuild, stage.decided(run, device), kind=kind)

    probabilities, unheard = blend.fill(whole.predict(ask), np.array(first.config["prior"]))
    if show:
        for id, row in zip(ids, probabilities):
            best = np.argsort(-row)[:flags.top]
            said = f"cannot be heard: {reasons[id]}" if id in reasons else "  ".join(f"{classes[i]} {row[i]:.3f}" for i in best)
            print(f"{id}: {said}")
        return
    for id, reason in reasons.items():
        print(f"{id}: {reason}; answered with the class prior")
    submission.write(out, np.array(ids), probabilities, classes, tuple(first.config["columns"]), None, first.multilabel)
    print(f"predictions: {out}, {len(ids)} rows, {int(unheard.sum())} of them by the prior")


def blended(inside: list[Member], flags: config.PredictFlags) -> Member:
    """The members as the flags would have them blended; a fitted blend is shown, and kept where it has a name."""
    if flags.blend == "mean" and flags.name is None:
        return members.plain_mean(inside)
    whole, found, oof, lines = members.fit(inside, flags.blend)
    for line in [f"out-of-fold, final epochs, {len(oof.ids)} clips", *lines, *members.table(found, whole.metric),
                 members.weights(inside, found.fitted)]:
        print(line)
    if flags.name is not None:
        folder = Path(flags.runs_folder) / flags.name
        kept.keep(folder, [m.folder for m in inside], whole.classes, whole.multilabel, whole.metric, found, oof)
        print(f"kept: {folder}, which predict.py --runs {flags.name} opens")
    return whole


def main(argv: list[str]) -> None:
    """Parse, open the runs, predict."""
    filled, _ = cli.parse({"predict": config.PredictFlags()}, argv, ABOUT, positional="files")
    flags = filled["predict"]
    # `--runs A FILE ...` reads as if the files were runs: a run is never a file.
    files = [name for name in flags.runs if Path(name).is_file()]
    inside = members.open_all(tuple(name for name in flags.runs if name not in files), flags.runs_folder)
    files += filled["files"]
    if flags.name is not None:
        kept.claim(flags.name, Path(flags.runs_folder) / flags.name, [member.folder for member in inside])
    if not files:  # their output is a line a file
        print(f"runs: {', '.join(map(str, inside))}")  # before torch is imported: that takes seconds
    from earshot import device
    from earshot.files import check_output

    out = flags.out or ("submissions/predictions.csv" if flags.audio else "submissions/submission.csv")
    check_output(out)
    at = device.choose(flags.device)
    if files and flags.audio:
        raise UserError("loose files and --audio at once: give one or the other")
    if files or flags.audio:
        predict_audio(blended(inside, flags), flags, files or [flags.audio], bool(files), Path(out), at)
    else:
        predict_cached(blended(inside, flags), flags.features, Path(out), at)


if __name__ == "__main__":
    cli.run(main)
