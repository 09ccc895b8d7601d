"""The fit of a teaching, in a process of its own: `python -m viapt.serve.lesson FOLDER`.

    FOLDER/lesson.json    settings of a run
    FOLDER/photos.jsonl   which photo shows what
    FOLDER/run/           as of `viapt fit`
    FOLDER/error.json     why it failed, if it did and the reason is one for the client

It ends when its standard input does: a server that is gone, however that came about, leaves no fit behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

LESSON, PHOTOS, RUN, ERROR = "lesson.json", "photos.jsonl", "run", "error.json"
REFUSED = 2


def main(folder: Path) -> int:
    """Fit; the exit code is 0, or `REFUSED` where `ERROR` says why."""
    threading.Thread(target=follow_the_server, daemon=True).start()
    from viapt.errors import ViaptError
    from viapt.runs import Settings, run

    settings = Settings(**json.loads((folder / LESSON).read_bytes()))
    try:
        run(folder / PHOTOS, folder / RUN, settings)
    except ViaptError as error:
        told = {"found": error.found, "expected": error.expected, "remedy": error.remedy}
        (folder / ERROR).write_text(json.dumps(told), encoding="utf-8")
        return REFUSED
    return 0


def follow_the_server() -> None:
    """Stop this process when its input has ended."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
