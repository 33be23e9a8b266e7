"""What earlier runs have found in image files, so that a large set is read and decoded once."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from anomalib_msacl.data.inspection import Inspection, inspect_each, inspect_image

logger = logging.getLogger(__name__)

_FORMAT = 1  # raise when an Inspection holds other things, or is made otherwise
_LARGEST = 1 << 32  # bytes: about ten million images
SEEN = ".seen_images.json"
"""Name of the file that runs keep in their folder."""
Stamp = tuple[int, int, int]


def seen_by_runs(folder: str | Path) -> Path:
    """Return the file that runs keep in their folder.

    Args:
        folder: Where a run writes. The folders ``v0``, ``v1`` ... that anomalib numbers share the one above.
    """
    folder = Path(folder)
    return (folder.parent if re.fullmatch(r"v\d+", folder.name) else folder) / SEEN


def look_at_images(paths: Iterable[str], threads: int, seen: Path | None) -> dict[str, Inspection]:
    """Read and decode each distinct image file, but for those that an earlier run has found good.

    A file counts as the same where its path, its size, and the times of its content and of its entry in the file
    system are. Broken files are looked at anew.

    Args:
        paths: The files.
        threads: Number of threads at most.
        seen: A file with the findings of earlier runs, which gets those of this one and loses those of files that are
            gone; None to look at everything. It is passed over where it cannot be read or written.

    Returns:
        The findings by path.
    """
    distinct = list(dict.fromkeys(paths))
    if seen is None:
        return inspect_each(inspect_image, distinct, threads)
    stamps = {path: _stamp(path) for path in distinct}
    kept = _read(seen)
    known = {
        path: finding
        for path, stamp in stamps.items()
        if stamp is not None and path in kept and kept[path][0] == stamp and (finding := _inspection(kept[path][1]))
    }
    new = inspect_each(inspect_image, [path for path in distinct if path not in known], threads)
    good = {path: (stamps[path], astuple(finding)) for path, finding in new.items() if not finding.problem}
    if good:
        _write(seen, _present(kept, stamps) | good)
    if known:
        logger.info("%d of %d images were looked at by an earlier run and have not changed.", len(known), len(distinct))
    return {path: known[path] if path in known else new[path] for path in distinct}


def _stamp(path: str) -> Stamp | None:
    """Return size and times of a file; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # Path takes as long again, a hundred thousand times
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _present(kept: dict[str, Any], stamps: Mapping[str, Stamp | None]) -> dict[str, Any]:
    """Leave out what is kept of files that are gone; those of other sets are looked for."""
    return {
        path: finding
        for path, finding in kept.items()
        if (stamps[path] is not None if path in stamps else _stamp(path) is not None)
    }


def _read(file: Path) -> dict[str, tuple[Any, Any]]:
    """Return what is kept, by path; nothing where it cannot be read."""
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:  # a pipe would wait for ever, a device never end
            return {}
        content = json.loads(file.read_bytes())
        if content["format"] != _FORMAT:
            return {}
        return {str(path): (tuple(stamp), finding) for path, (stamp, finding) in content["images"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _write(file: Path, images: dict[str, Any]) -> None:
    """Replace what is kept, at once or not at all."""
    part = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(json.dumps({"format": _FORMAT, "images": images}), encoding="utf-8")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        logger.info("What was found in the images cannot be kept in %s (%s).", file, error.strerror)


def _inspection(values: Any) -> Inspection | None:
    """Return a finding from plain data; None where it is not one."""
    try:
        sha256, (height, width), *others = values
        found = Inspection(sha256, (height, width), *others)
    except (TypeError, ValueError):
        return None
    good = isinstance(sha256, str) and all(isinstance(each, int) for each in (height, width, found.bits))
    return found if good and not found.problem else None
