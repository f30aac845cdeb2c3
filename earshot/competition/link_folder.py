"""A folder of links that shows several folders as one: a competition as it would be, were its archives
unpacked in place."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from earshot.competition import zip_file
from earshot.core.files import digest_of


def link_files(
    folder: Path, root: Path, more: Sequence[tuple[str, Path]], hidden: Collection[str]
) -> list[str]:
    """Have `folder` show what lies below `root`, and more.

    A name that lies in several places is a folder of all their files; of several files the first is shown.
    Where the links are right already nothing is touched, so that whoever reads through them is not disturbed.

    Args:
        more: folders with the path in `folder` where their files are to be seen, "" for its top.
        hidden: paths that are left out.
    Returns:
        The paths of files that hide others of another size.
    """
    links, shadowed = plan_links([("", root), *more], set(hidden))
    state = json.dumps({"of": str(root), "links": digest_of({path: str(to) for path, to in links.items()})})

    def write(partial: Path) -> None:
        partial.mkdir(parents=True)
        for path, target in links.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).symlink_to(target)

    zip_file.fill_folder(folder, state, write)
    return shadowed


def plan_links(sources: list[tuple[str, Path]], hidden: set[str]) -> tuple[dict[str, Path], list[str]]:
    """The links, a target for each path, and the paths of files that hide others of another size."""
    links: dict[str, Path] = {}
    shadowed: list[str] = []
    opened = {up for path in (*(at for at, _ in sources), *hidden) for up in list_parents(path)}

    def show(path: str) -> None:
        targets = [target for at, folder in sources if (target := find_target(path, at, folder)) is not None]
        targets = [
            target for target in targets if zip_file.find_mirror_source(target) is None
        ]  # what was made of other folders
        first = targets[0] if targets else None
        if first is not None and not os.path.isdir(first):
            links[path] = first
            others = [os.path.getsize(target) for target in targets if os.path.isfile(target)]
            shadowed.extend([path] * (len(set(others)) > 1))
        elif first is not None and len(targets) == 1 and path not in opened:
            links[path] = first
        else:
            names = {name for target in targets for name in list_visible(target)}
            head = f"{path}/" if path else ""
            names |= {
                at[len(head) :].split("/")[0] for at, _ in sources if at.startswith(head) and at != path
            }
            for name in sorted(names):
                if head + name not in hidden:
                    show(head + name)

    show("")
    return links, shadowed


def find_target(path: str, at: str, folder: Path) -> Path | None:
    """What a folder that is shown at a place has at a path; None without anything."""
    inside = path[len(at) :].lstrip("/") if not at or path == at or path.startswith(f"{at}/") else None
    target = None if inside is None else folder / inside if inside else folder
    return target if target is not None and os.path.lexists(target) else None


def list_visible(folder: Path) -> list[str]:
    """The names in a folder that are not hidden; none of what is no folder."""
    return [n for n in os.listdir(folder) if not n.startswith(".")] if os.path.isdir(folder) else []


def list_parents(path: str) -> list[str]:
    """The folders above a relative path, "" among them."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:n]) for n in range(len(parts))]
