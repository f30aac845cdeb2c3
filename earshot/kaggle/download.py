"""Downloads, checks and unpacks a competition, a dataset or ESC-50."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earshot.competition import file_index, zip_file
from earshot.core import disk_space
from earshot.core.errors import TemporaryError, UserError
from earshot.core.file_names import is_audio
from earshot.core.files import hold_lock, replace_file
from earshot.kaggle import client

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
ESC50 = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
PAGES, PAGE = 20, 200  # most files to list, for an estimate of the disk space


def find_or_download(name: str | None, out: str) -> str | None:
    """The folder of a competition, downloaded if necessary.

    Args:
        name: the value of --competition: an existing path, or sample, is returned as it is; SLUG (or
            competitions/SLUG) is a Kaggle competition, datasets/OWNER/SLUG a dataset, esc50 the published
            archive. These go to OUT/<slug>/unpacked.
        out: the folder of competitions and caches.
    Raises:
        UserError: whatever keeps it from being downloaded, or a damaged zip.
    """
    if name is None or name == "sample" or Path(name).expanduser().exists():
        return name
    dataset = re.fullmatch(rf"datasets/({NAME})/({NAME})", name)
    slug = dataset[2] if dataset else name.removeprefix("competitions/")
    if not re.fullmatch(NAME, slug):
        return name  # a path: its reader reports that it does not exist
    folder = Path(out) / slug
    if (folder / "unpacked" / zip_file.MARKER).is_file() or _has_audio(folder):
        print(f"competition: {folder}, downloaded earlier")
        return str(folder)
    if folder.with_name(f"{slug}.zip").is_file():
        return str(folder.with_name(f"{slug}.zip"))
    part = Path(out) / ".downloads" / slug
    with hold_lock(part, f"the download of {name} in"):
        if not (folder / "unpacked" / zip_file.MARKER).is_file():
            ref = f"{dataset[1]}/{slug}" if dataset else slug
            path = (
                download_esc50(part)
                if name == "esc50"
                else download_from_kaggle(ref, part, bool(dataset), name)
            )
            unpack(path, folder / "unpacked")
        shutil.rmtree(part, ignore_errors=True)  # else twice the space is needed
    return str(folder)


def _has_audio(folder: Path) -> bool:
    return folder.is_dir() and any(any(map(is_audio, names)) for _, names in file_index.walk_folder(folder))


def download_from_kaggle(ref: str, part: Path, dataset: bool, name: str) -> Path:
    """Download the zip of a competition or dataset into the folder `part`; an interrupted download is
    continued."""
    print(f"download: {name} does not exist here: downloading it from Kaggle", flush=True)
    about = f"the download of {name}"
    with _mention_local_path(name):
        api = client.connect()
        kind = "dataset" if dataset else "competition"
        rules = f"join it and accept its rules at https://www.kaggle.com/competitions/{ref}/rules"
        rules = "is it public, or yours?" if dataset else rules
        hints = {"api": api, "forbidden": rules, "absent": f"there is no {kind} {ref}, or it is private"}
        with client.translate_errors(about, **hints):
            count, size, more = count_files(api, ref, dataset)
        print(
            f"download: {'more than ' if more else ''}{count} files, {disk_space.format_bytes(size)}",
            flush=True,
        )
        disk_space.check_space(part, 2 * size, 2 * size)  # the zip and its content
        with client.translate_errors(about, **hints) as printed:
            get = api.dataset_download_files if dataset else api.competition_download_files
            get(ref, path=str(part), quiet=not sys.stderr.isatty())
        found = [path for path in part.iterdir() if path.suffix.lower() == ".zip"]
        if not found:
            there = ", ".join(path.name for path in part.iterdir() if not path.name.startswith("."))
            there = there or printed.getvalue()[-80:].strip() or "nothing"
            raise UserError(
                f"{about}: Kaggle sent {there}, not a zip: unpack it yourself and give its folder to "
                "--competition"
            )
    return found[0]


@contextlib.contextmanager
def _mention_local_path(name: str) -> Iterator[None]:
    """Add to an error that the name may be a misspelt path."""
    try:
        yield
    except client.NotFound as error:
        raise UserError(f"{error} (and there is no folder or zip {name} here)") from None


def count_files(api: Any, ref: str, dataset: bool) -> tuple[int, int, bool]:
    """Number of files of a competition or dataset, their bytes, and whether there are more than listed."""
    count = size = 0
    token = None
    for _ in range(PAGES):
        reply = (api.dataset_list_files if dataset else api.competition_list_files)(
            ref, page_token=token, page_size=PAGE
        )
        files = [file for file in reply.files or [] if file]
        count, size, token = (
            count + len(files),
            size + sum(file.total_bytes or 0 for file in files),
            reply.next_page_token,
        )
        if not token or not files:
            return count, size, False
    return count, size, True


def unpack(path: Path, into: Path) -> None:
    """Unpack a downloaded zip and the zips at its top, verified by their checksums.

    Raises:
        UserError: damaged (it is removed, so that the same command downloads it again), or not safe to
            unpack.
    """
    try:
        root = zip_file.unpack_archive(path, into)
    except zip_file.DamagedArchive as error:
        path.unlink()
        raise UserError(f"{error}; it is removed, and the same command downloads it again") from None
    for inner in sorted(root.glob("*.zip")):  # older competitions have their audio in inner zips
        beside = inner.with_suffix("")
        if not beside.exists():
            zip_file.unpack_archive(inner, beside)
            inner.unlink()
    print(f"download: {into}, {sum(1 for p in into.rglob('*') if p.is_file())} files, checked")


def download_esc50(part: Path) -> Path:
    """Download ESC-50's published archive into the folder `part`, always from the start: its server can't
    continue a download.

    Raises:
        UserError: no network, or no such file.
        TemporaryError: the connection broke off.
    """
    import requests

    path = part / "esc50.zip"
    print(f"download: ESC-50 (600 MB, CC BY-NC) from {ESC50}", flush=True)
    try:
        with requests.get(ESC50, stream=True, timeout=60) as reply:
            reply.raise_for_status()
            size = int(reply.headers.get("Content-Length") or 0)
            disk_space.check_space(part, 2 * size, 2 * size)
            with replace_file(path) as file:
                broken = False
                try:
                    for block in reply.iter_content(1 << 20):
                        file.write(block)
                except requests.exceptions.RequestException:
                    broken = True
                if broken or size and file.tell() != size:
                    raise TemporaryError(
                        f"the download of ESC-50 broke off after {file.tell()} bytes: it starts again"
                    )
    except requests.exceptions.RequestException as error:
        raise UserError(
            f"the download of ESC-50 failed ({' '.join(str(error).split())[:120]}): is there a network? The "
            f"same command starts again; or download {ESC50} yourself and give the zip to --competition"
        ) from None
    return path
