"""Miniature Debian packages."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def tar_bytes(members: list[tarfile.TarInfo], content: bytes | Mapping[str, bytes]) -> bytes:
    """A tar file; `content` is that of every regular file, or of each by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member in members:
            data = content if isinstance(content, bytes) else content[member.name]
            archive.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return buffer.getvalue()


def deb_file(path: Path, members: list[tarfile.TarInfo], content: bytes | Mapping[str, bytes]) -> Path:
    """A Debian package: an `ar` archive of a version and two tar files."""
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar_bytes([], b""),
        "data.tar.gz": tar_bytes(members, content),
    }
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, part in parts.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(part):<10}`\n".encode())
            file.write(part + b"\n" * (len(part) % 2))
    return path


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member
