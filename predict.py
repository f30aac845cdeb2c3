"""Stage 3: saved runs -> a submission, or the classes of any audio file."""

from __future__ import annotations

from pathlib import Path

from earshot import cli, config
from earshot.errors import UserError

ABOUT = """Predict with saved runs.

  python predict.py --runs A B                 the competition's clips -> submissions/submission.csv
  python predict.py --runs A --audio FOLDER    a folder of new audio -> submissions/predictions.csv
  python predict.py --runs A FILE ...          the likeliest classes of loose files, on the terminal"""


def open_runs(names: tuple[str, ...], folder: str) -> list:
    """The named runs (paths, or names in the runs' folder), else the only one."""
    from earshot import earlier
    from earshot.run import CONFIG, Run

    found = [path.parent for path in sorted(Path(folder).glob(f"*/{CONFIG}"))]
    if not names:
        found = found or earlier.runs()
        if len(found) != 1:
            raise UserError(f"which run? there are {', '.join(map(str, found))}: choose with --runs" if found
                            else f"no run in {folder}/ and none attached: train one with train.py, or name its folder with --runs")
        names = (str(found[0]),)
    # A name may also be that of another folder here, its competition's for example.
    return [Run.open(Path(n) if (Path(n) / CONFIG).is_file() else Path(folder) / n).whole() for n in names]


def predict_cached(runs: list, features: str | None, out: Path, device) -> None:
    """The blend's submission for the clips that the caches hold."""
    import numpy as np

    import models
    from earshot import blend, stage

    classes, total, ids = blend.same_classes(runs), 0, None
    caches = [blend.cache_of(run, features) for run in runs]
    blend.same_clips(runs, caches)
    for run, cache in zip(runs, caches):
        if not cache.has("subm"):
            print(f"nothing to submit: {cache.folder} has no clips without labels")
            return
        rows = blend.rows_of(cache, "subm", run.config["record"]["view"], device)
        if ids is None:
            ids = rows.ids
        place = {str(id): index for index, id in enumerate(rows.ids)}
        found = blend.predict_run(run, rows, models.rebuild, stage.decided(run, device))
        total = total + found[[place[str(id)] for id in ids]]
        print(f"{run.folder}: {len(run.finished_folds())} folds, {len(ids)} clips")
    for line in stage.submit(cache, ids, total / len(runs), np.array(runs[0].config["prior"]), classes, out,
                             runs=runs, how="mean" if len(runs) > 1 else ""):
        print(line)


def predict_audio(runs: list, flags: config.PredictFlags, paths: list[str], show: bool, out: Path, device) -> None:
    """The blend's predictions for new audio: as a csv, or shown."""
    import numpy as np

    import models
    from earshot import blend, loose, stage, submission
    from earshot.dataset import Rows

    classes, total = blend.same_classes(runs), 0
    ids, files = loose.listed(paths)
    for run in runs:
        split, span, bad = loose.features(run, ids, files, flags.weights, device)
        rows = Rows(split, run.config["record"]["view"], classes, span, device.name)
        total = total + blend.predict_run(run, rows, models.rebuild, stage.decided(run, device))
    probabilities, unheard = blend.fill(total / len(runs), np.array(runs[0].config["prior"]))
    reasons = dict(bad)
    if show:
        for id, row in zip(ids, probabilities):
            best = np.argsort(-row)[:flags.top]
            said = f"cannot be heard: {reasons[id]}" if id in reasons else "  ".join(f"{classes[i]} {row[i]:.3f}" for i in best)
            print(f"{id}: {said}")
        return
    for id, reason in bad:
        print(f"{id}: {reason}; answered with the class prior")
    submission.write(out, np.array(ids), probabilities, classes, tuple(runs[0].config["columns"]), None,
                     runs[0].multilabel)
    print(f"predictions: {out}, {len(ids)} rows, {int(unheard.sum())} of them by the prior")


def main(argv: list[str]) -> None:
    """Parse, open the runs, predict."""
    filled, _ = cli.parse({"predict": config.PredictFlags()}, argv, ABOUT, positional="files")
    flags = filled["predict"]
    # `--runs A FILE ...` reads as if the files were runs: a run is never a file.
    files = [name for name in flags.runs if Path(name).is_file()]
    runs = open_runs(tuple(name for name in flags.runs if name not in files), flags.runs_folder)
    files += filled["files"]
    if not files:  # their output is a line a file
        said = [f"{run.folder} ({run.config['record']['head']['name']} on {run.config['record']['view']})" for run in runs]
        print(f"runs: {', '.join(said)}")  # before torch is imported: that takes seconds
    from earshot import device
    from earshot.files import check_output

    out = flags.out or ("submissions/predictions.csv" if flags.audio else "submissions/submission.csv")
    check_output(out)
    at = device.choose(flags.device)
    if files and flags.audio:
        raise UserError("loose files and --audio at once: give one or the other")
    if files or flags.audio:
        predict_audio(runs, flags, files or [flags.audio], bool(files), Path(out), at)
    else:
        predict_cached(runs, flags.features, Path(out), at)


if __name__ == "__main__":
    cli.run(main)
