"""Unpack an archive without trusting it."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import track

from vidtune.contracts import UserError


def unzip(archive: Path, folder: Path, console: Console | None = None) -> int:
    """Unpack into ``folder``; entries that lie there with their full size are kept, so that it can be interrupted.

    Args:
        console: for the progress bar; stderr by default.

    Returns:
        The number of files written now.

    Raises:
        UserError: not a zip file, a damaged entry, or one that would be written outside the folder or as a link.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            targets = [_target(entry, folder, archive) for entry in entries]  # all are checked before the first
            todo = [
                (entry, target)
                for entry, target in zip(entries, targets)
                if not (target.is_file() and target.stat().st_size == entry.file_size)
            ]
            if todo:
                _check_space(sum(entry.file_size for entry, _ in todo), folder, archive)
            for entry, target in track(
                todo, f"unpacking {archive.name}", console=console or Console(stderr=True), disable=not todo
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"{target.name}.part")
                with opened.open(entry) as source, part.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                part.replace(target)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}). Download it again.") from error
    return len(todo)


def _target(entry: zipfile.ZipInfo, folder: Path, archive: Path) -> Path:
    """Where the entry belongs.

    Raises:
        UserError: outside the folder, or a link.
    """
    home = folder.resolve()
    target = (home / entry.filename).resolve()
    if home not in target.parents:
        raise UserError(
            f"{archive}: entry {entry.filename!r} would be written outside of {folder}; nothing was unpacked."
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{archive}: entry {entry.filename!r} is a link; nothing was unpacked.")
    return target


def _check_space(needed: int, folder: Path, archive: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{archive}: unpacks to {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free.")
