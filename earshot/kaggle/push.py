"""Uploads the bundle as a dataset, and runs a notebook on Kaggle: its log and output come back."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from earshot.core.errors import UserError
from earshot.core.files import hash_file, read_json, write_json, write_text
from earshot.kaggle import bundle, client
from earshot.kaggle.download import NAME
from earshot.kaggle.flags import BundleFlags, PushFlags
from earshot.kaggle.notebook import fill_in_code

KERNEL = "kernel-metadata.json"
KEYS = (
    "id id_no title code_file language kernel_type is_private enable_gpu enable_tpu enable_internet "
    "machine_shape dataset_sources competition_sources kernel_sources model_sources keywords "
    "docker_image docker_image_pinning_type"
).split()
RETIRED = ("nvidiateslap100", "tpu1vmv38", "tpuv38")
ENDS = ("complete", "error", "cancel_acknowledged")


def push_dataset(folder: Path, flags: BundleFlags) -> None:
    """Create the bundle's dataset, or a new version of it, and wait until it is ready.

    Raises:
        UserError: Kaggle or the client refuses it.
    """
    api = client.connect()
    path = folder / bundle.METADATA
    about = read_json(path)
    about["id"] = f"{client.get_user(api) or about['id'].split('/')[0]}/{flags.slug}"
    write_json(path, about)
    ref, sums = about["id"], hash_file(folder / bundle.SUMS)
    hints = {"api": api, "forbidden": "is the phone number of your account confirmed? Is the slug yours?"}
    try:
        with client.translate_errors("the upload", **hints):
            api.dataset_status(ref)
        new = False
    except client.NotFound:
        new = True
    print(f"upload: {folder} -> {'new private dataset' if new else 'new version of'} {ref}", flush=True)
    with client.translate_errors("the upload", **hints) as printed:
        if new:
            reply = api.dataset_create_new(str(folder), public=False, quiet=True, dir_mode="zip")
        else:
            reply = api.dataset_create_version(
                str(folder), flags.message or f"sha256 {sums[:12]}", quiet=True, dir_mode="zip"
            )
    wrong = reply.error or (reply.status if str(reply.status or "").lower() not in ("", "ok") else "")
    if wrong or "unsuccessful" in printed.getvalue().lower():
        raise UserError(
            client.hide(
                f"the upload failed: {wrong or printed.getvalue().strip().splitlines()[-1][:200]}", api
            )
        )

    def ask() -> tuple[str, bool]:
        with client.translate_errors("the upload's state", **hints):
            state = str(api.dataset_status(ref))
        if state == "failed":
            raise UserError(f"Kaggle failed to process {ref}: see https://www.kaggle.com/datasets/{ref}")
        return state.replace("_", " "), state == "ready"

    try:
        ready = client.wait(ask, flags.wait)
    except client.NotFound:
        ready = False  # a new dataset takes a while to be visible
    page = reply.url or f"https://www.kaggle.com/datasets/{ref}"
    print(f"upload: {page}" + ("" if ready else ", not ready yet: see its page"))
    print(f"next: python -m earshot.kaggle push NOTEBOOK --datasets {ref}")


def push_notebook(path: str, flags: PushFlags) -> None:
    """Push a notebook, wait for its end, show its log, fetch its output.

    Args:
        path: a .ipynb or .py file, or a folder with a kernel-metadata.json.
    Raises:
        UserError: metadata or code that Kaggle refuses, a refused push, or a notebook that failed.
    """
    file, about = load_metadata(Path(path), flags)
    api = client.connect()
    owner = client.get_user(api)
    slug = slugify(str(about["title"]))
    about["id"] = f"{owner}/{slug}"
    sources = [source for key in KEYS if key.endswith("_sources") for source in about[key]]
    print(
        f"push: {file} -> {about['id']} on {about['machine_shape'] or 'a CPU'}, internet "
        f"{'on' if about['enable_internet'] else 'off'}, with {', '.join(sources) or 'nothing attached'}",
        flush=True,
    )
    # the client needs a folder with one notebook and its metadata
    with tempfile.TemporaryDirectory() as stage:
        # with Earshot's code in it
        own = fill_in_code(file) if file.suffix == ".ipynb" else file.read_text(encoding="utf-8")
        write_text(Path(stage) / about["code_file"], own)
        write_json(Path(stage) / KERNEL, about)
        hint = "is the phone number of your account confirmed? Have you joined the competition?"
        with client.translate_errors("the push", api=api, forbidden=hint) as printed:
            reply = api.kernels_push(stage)
    if reply is None or reply.error:  # the client's own command prints this and exits with 0
        raise UserError(
            client.hide(
                f"the push failed: {reply.error if reply else printed.getvalue().strip()[-200:]}", api
            )
        )
    refused = {
        "datasets": reply.invalid_dataset_sources,
        "competitions": reply.invalid_competition_sources,
        "notebooks": reply.invalid_kernel_sources,
        "models": reply.invalid_model_sources,
    }
    print(f"push: version {reply.version_number}, {reply.url}", flush=True)
    if any(refused.values()):
        lost = "; ".join(f"{kind} {', '.join(map(str, names))}" for kind, names in refused.items() if names)
        raise UserError(
            f"it was pushed, but Kaggle did not attach {lost}: check that they are ready, yours or "
            "public, and that you joined the competition; then push again"
        )
    if flags.wait:
        wait_and_download(api, about, reply.version_number, flags)


def wait_and_download(api: Any, about: dict, version: int, flags: PushFlags) -> None:
    """Wait for the notebook's end, print the last lines of its log, and save the log and output in a
    folder."""
    ref = about["id"]
    state: dict[str, str] = {}

    def ask() -> tuple[str, bool]:
        with client.translate_errors("the notebook's state", api=api):
            reply = api.kernels_status(ref)
        state.update(name=reply.status.name.lower(), why=reply.failure_message or "")
        return state["name"].replace("_", " "), state["name"] in ENDS

    print("the notebook:", flush=True)
    if not client.wait(ask, flags.wait):
        print(
            f"it is still running after {flags.wait:g} minutes; later: "
            f"kaggle kernels output {ref} -p {flags.out}"
        )
        return
    folder = Path(flags.out) / ref.split("/")[1]
    folder.mkdir(parents=True, exist_ok=True)
    with client.translate_errors("the notebook's output", api=api):
        files, _ = api.kernels_output(ref, str(folder), force=True, quiet=True)
    log = folder / f"{ref.split('/')[1]}.log"
    lines = parse_log(log.read_text(encoding="utf-8")) if log.is_file() else []
    write_text(log, "\n".join(lines) + "\n")
    print(*(f"  | {line}" for line in lines[-40:]), sep="\n")
    print(
        f"output: {folder}, {len(files)} files: {', '.join(sorted(Path(f).name for f in files)[:8])}",
        flush=True,
    )
    if state["name"] != "complete":
        why = f": {state['why']}" if state["why"] else ""
        raise UserError(f"the notebook ended with {state['name'].replace('_', ' ')}{why}; its log: {log}")
    if any(Path(f).name == "submission.csv" for f in files) and about["competition_sources"]:
        slug = about["competition_sources"][0]
        print(f"next: python predict.py --submit --competition {slug} --kernel {ref}/{version} -m MESSAGE")


def parse_log(log: str) -> list[str]:
    """The lines of a notebook's log, which Kaggle sends as JSON: texts with times."""
    try:
        pieces = json.loads(log)
        text = "".join(str(piece.get("data", "")) for piece in pieces)
    except (ValueError, AttributeError, TypeError):
        text = log
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).splitlines()


def slugify(title: str) -> str:
    """The slug that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def load_metadata(path: Path, flags: PushFlags) -> tuple[Path, dict[str, Any]]:
    """The notebook's file and its checked metadata: those beside it, changed by the flags, or new ones.

    Raises:
        UserError: no such notebook, damaged metadata, or values that Kaggle refuses or silently replaces.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists() or path.is_dir() and not (path / KERNEL).is_file():
        raise UserError(f"no notebook {path}: give a .ipynb file, or a folder with its {KERNEL}")
    found: dict[str, Any] = {}
    for beside in (folder / f"{path.stem}.{KERNEL}", folder / KERNEL):
        if beside.is_file():
            read = read_json(beside)
            if not isinstance(read, dict):
                raise UserError(f"{beside} is not a JSON object")
            if path.is_dir() or read.get("code_file") == path.name:
                found, path = read, folder / str(read.get("code_file"))
                break
    unknown = [key for key in found if key not in KEYS]
    if unknown:
        raise UserError(f"{beside}: unknown key {unknown[0]}; Kaggle's keys are {', '.join(KEYS)}")
    if not path.is_file() or path.suffix not in (".ipynb", ".py"):
        raise UserError(f"{path} is not a notebook: give a .ipynb or .py file")
    about: dict[str, Any] = {
        "title": path.stem.replace("_", " "),
        "language": "python",
        "is_private": True,
        "enable_internet": True,
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [],
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
        **found,
        "code_file": path.name,
        "kernel_type": "notebook" if path.suffix == ".ipynb" else "script",
    }
    given = {
        "title": flags.title,
        "enable_internet": {"on": True, "off": False}.get(flags.internet or ""),
        "machine_shape": flags.accelerator,
        "competition_sources": list(flags.competition),
        "dataset_sources": list(flags.datasets),
        "kernel_sources": list(flags.kernels),
    }
    about |= {key: value for key, value in given.items() if value not in (None, [])}
    if about["machine_shape"] == "cpu":
        about["machine_shape"] = ""
    if flags.accelerator or "enable_gpu" not in found:
        about["enable_gpu"] = bool(about["machine_shape"]) and not str(about["machine_shape"]).startswith(
            "Tpu"
        )
        about["enable_tpu"] = str(about["machine_shape"]).startswith("Tpu")
    check_metadata(about, path)
    return path, about


def check_metadata(about: dict[str, Any], path: Path) -> None:
    """Raise UserError for metadata that Kaggle would refuse or silently change."""
    if len(str(about["title"])) < 5 or not 5 <= len(slugify(str(about["title"]))) <= 50:
        raise UserError(f"{path}: its title {about['title']!r} needs 5 to 50 letters and digits: --title")
    if str(about["machine_shape"]).lower() in RETIRED:
        raise UserError(
            f"{path}: {about['machine_shape']} is retired, and Kaggle would silently use another: "
            "--accelerator NvidiaTeslaT4"
        )
    for key in ("is_private", "enable_gpu", "enable_tpu", "enable_internet"):
        about[key] = {"true": True, "false": False}.get(
            str(about.get(key, False)).lower(), about.get(key, False)
        )
        if not isinstance(about[key], bool):
            raise UserError(f"{path}: {key} is {about[key]!r} in its metadata: give true or false")
    forms = {
        "competition_sources": NAME,
        "dataset_sources": f"{NAME}/{NAME}(/[0-9]+)?",
        "kernel_sources": f"{NAME}/{NAME}",
    }
    for key, form in forms.items():
        wrong = [name for name in about[key] if not re.fullmatch(form, str(name))]
        if wrong:
            wanted = "SLUG" if form == NAME else "OWNER/SLUG"
            raise UserError(f"{path}: {wrong[0]} among {key}: give {wanted}, as in its address")
    if path.suffix == ".ipynb":
        cells = read_json(path)
        if not isinstance(cells, dict) or not isinstance(cells.get("cells"), list):
            raise UserError(f"{path} is not a notebook: it has no cells")
