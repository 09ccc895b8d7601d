"""What was found when files were last read, kept so that only those which have changed since are read again.

A file counts as unchanged when size and both times, of its content (mtime) and of its record in the file system (ctime,
which nobody can set back), are as they were. As in git, a file that changed within two seconds of being read is not
remembered: it could change once more without its times showing it.

A manifest belongs to a folder and is kept in the cache (`VIAPT_CACHE`), not in the folder, which is often shared or
read-only, and is the user's. It begins with the SHA-256 of the rest, is written whole or not at all, and is made anew
when it is damaged. Losing it costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from viapt.packaged import cache_dir, write_whole

FORMAT = 1
LIMIT = 2**30  # bytes of a manifest; a million files take some 300 MB
SETTLED = 2 * 10**9  # nanoseconds: the coarsest times of file systems in use


class Stamp(NamedTuple):
    """What tells that a file has changed; nanoseconds and bytes."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Record(NamedTuple):
    """What reading a picture found: SHA-256 of its content and its perceptual hash, both in hex."""

    content: str
    appearance: str


class Manifest:
    """Records of the files of one folder, by path.

    Args:
        folder: whose; it need not exist.

    Attributes:
        path: where the manifest is kept.
        records: stamp and record of each file, by its absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        name = hashlib.sha256(str(self.folder).encode(errors="surrogateescape")).hexdigest()[:32]
        self.path = cache_dir() / "manifests" / f"{name}.json"
        self.records = self._load()
        self._changed = False

    def recall(self, path: Path, stamp: Stamp) -> Record | None:
        """What was found in this file, if it has not changed since."""
        known = self.records.get(str(path))
        return known[1] if known is not None and known[0] == stamp else None

    def remember(self, path: Path, stamp: Stamp, record: Record) -> None:
        """Keep what was found, if the file is at rest and is still the one that had this stamp before it was read."""
        at_rest = max(stamp.mtime_ns, stamp.ctime_ns) < time.time_ns() - SETTLED
        if at_rest and stamp_of(path) == stamp:
            self.records[str(path)] = stamp, record
            self._changed = True

    def save(self) -> None:
        """Write the manifest, if anything in it is new; files that are gone are left out.

        Raises:
            OSError: the cache cannot be written to. An earlier manifest stays.
        """
        if not self._changed:
            return
        files = {path: [*stamp, *record] for path, (stamp, record) in self.records.items() if Path(path).exists()}
        body = json.dumps({"format": FORMAT, "folder": str(self.folder), "files": files}).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        with FileLock(f"{self.path}.lock"):
            write_whole(self.path, lambda temporary: _fill(temporary, content))
        self._changed = False

    def _load(self) -> dict[str, tuple[Stamp, Record]]:
        """The records; none if there is no manifest, or only a damaged one or one of another version."""
        try:
            if self.path.stat().st_size > LIMIT:
                return {}
            digest, _, body = self.path.read_bytes().partition(b"\n")
        except OSError:
            return {}
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return {}
        content = json.loads(body)
        if content["format"] != FORMAT or content["folder"] != str(self.folder):
            return {}
        return {path: (Stamp(*row[:3]), Record(*row[3:])) for path, row in content["files"].items()}


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file as it is now.

    Raises:
        OSError: there is none, or it is out of reach.
    """
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)
