"""Folders whose files are known to be those that were written, to the last bit."""

import hashlib
import json
from pathlib import Path

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Add a list of the folder's files with their SHA-256.

    Raises:
        OSError: if it can't be written.
    """
    (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder), indent=2), encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a folder that has such a list, in words; None if its files are those that were written."""
    try:
        expected = dict(json.loads((folder / CHECKSUMS).read_text(encoding="utf-8")))
        found = _checksums(folder)
    except (OSError, ValueError, TypeError):
        return f"{CHECKSUMS} is missing or can't be read"
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            return f"{name} is not what was written" if name in found else f"{name} is missing"
    return None


def _checksums(folder: Path) -> dict[str, str]:
    """{name: SHA-256} of every file but the list of them."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS):
        with open(path, "rb") as file:
            sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


__all__ = ["CHECKSUMS", "find_damage", "write_checksums"]
