"""What the doctor says of a task: state, counts, what is wrong, what looks suspicious, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

FOUND, PARTLY, MISSING, FAILED = "found", "partly", "missing", "failed"


class Remark(NamedTuple):
    """One thing that was noticed.

    Attributes:
        kind: a word for programs, such as "count" or "unreadable".
        text: for people.
        names: all pictures or files that it is about.
    """

    kind: str
    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartCheck:
    """A part, counted.

    Attributes:
        images: that are listed.
        expected: how many there should be.
        per_class: listed images by class index.
        content_hash: as `ImageDataset.content_hash`; empty where not all images could be read.
    """

    images: int
    expected: int
    per_class: tuple[int, ...] = ()
    content_hash: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found of a task.

    Attributes:
        task: its name.
        state: "found" (complete), "partly", "missing", or "failed" (the check itself broke off).
        layout: that was recognised; empty if none.
        folder: where.
        parts: counts by part, as far as it could be read.
        problems: for which the task is not complete.
        warnings: what does not keep it from being used.
        next_step: what to do; empty if nothing.
    """

    task: str
    state: str
    layout: str = ""
    folder: str = ""
    parts: dict[str, PartCheck] = field(default_factory=dict)
    problems: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()
    next_step: str = ""

    @property
    def complete(self) -> bool:
        """Whether results on it can be what the protocol means."""
        return self.state == FOUND

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; names and texts as they may be printed."""
        remarks = {
            name: [
                {"kind": remark.kind, "text": printable(remark.text), "names": list(map(printable, remark.names))}
                for remark in getattr(self, name)
            ]
            for name in ("problems", "warnings")
        }
        return asdict(self) | remarks | {"folder": printable(self.folder), "next_step": printable(self.next_step)}


def printable(text: str) -> str:
    """The same text with control characters and bytes that are no UTF-8 written as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
