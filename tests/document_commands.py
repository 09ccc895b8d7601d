"""Commands of documents, each run in a form that a test can afford.

Those of viapt run in this process, `viapt bench` with its first task and seed and small images, `viapt serve` in the
background. Of pip the names of extras are checked, of make the targets, of pytest what would be tested, of
`source` nothing.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path
from unittest import SkipTest

from serve_cases import served
from viapt.bench.experiments import EXPERIMENTS
from viapt.cli import main

ROOT = Path(__file__).parents[1]
SIZES = "--image-size 32 --batch-size 20 --epochs 1 --precision float32 --workers 1 --threads 1"
PARTS = "--train 40 --val 20 --test 30"
FIRST_ALONE = "--tasks", "--seeds"
PATIENCE = 500  # seconds; machines may be busy


class WrongPageError(AssertionError):
    """A block that does not do what its page says."""


class Shell:
    """Runs lines of a page.

    Attributes:
        backbone: what jobs of the laboratory train on.
        background: what must end with the page.
        addresses: of servers, as the page has them -> as they are.
    """

    def __init__(self, backbone: str) -> None:
        self.backbone = backbone
        self.background = ExitStack()
        self.addresses: dict[str, str] = {}

    def run(self, line: str) -> None:
        """One command.

        Raises:
            WrongPageError: it fails, or is of no kind that is known here.
            SkipTest: what it needs is not on this machine.
        """
        for written, real in self.addresses.items():
            line = line.replace(written, real)
        words = shlex.split(line.replace(" ~/", f" {Path.home()}/"), comments=True)
        match words:
            case ["viapt", "serve", *rest]:
                self.serve(rest)
            case ["viapt", *rest]:
                run(self.smaller(rest))
            case ["pip", "install", what]:
                check_extra(what)
            case ["source", ".venv/bin/activate"]:
                pass
            case ["make", _]:
                called("make", "--dry-run", *words[1:], folder=ROOT)
            case [".venv/bin/python", "-m", "pytest", *rest]:
                called(sys.executable, "-m", "pytest", "--collect-only", "--quiet", *rest, folder=ROOT)
            case ["python", *rest]:
                print(called(sys.executable, *rest))
            case ["curl", *rest] if shutil.which("curl"):
                print(called("curl", "--silent", "--show-error", "--fail-with-body", *rest))
            case ["curl", *_]:
                raise SkipTest("there is no curl here")
            case _ if words:
                raise WrongPageError(f"{line} is nothing that is known here")

    def serve(self, words: list[str]) -> None:
        """Start a server, which is stopped with the page."""
        place = words.index("--port") if "--port" in words else len(words)
        first, *others = words[:place] + words[place + 2 :]
        address, _ = self.background.enter_context(served(Path(first), Path("serve.log"), *others))
        port = words[place + 1] if words[place:] else "8000"
        self.addresses[f"http://127.0.0.1:{port}"] = address

    def smaller(self, words: list[str]) -> list[str]:
        """The laboratory's jobs made small and few; any other command as it is."""
        suite = "--suite" in words
        if words[0] != "bench" or "--out" not in words or not (suite or words[1] in {"run", *EXPERIMENTS}):
            return words
        few: list[str] = []
        for word in words:
            if len(few) < 2 or few[-2] not in FIRST_ALONE or word.startswith("--"):
                few.append(word)
        few += ["--backbone", self.backbone, *SIZES.split(), *([] if suite else PARTS.split())]
        for option, value in (("--tasks", "svhn" if suite else "fashion"), ("--seeds", "0")):
            few += [] if option in few else [option, value]
        if suite or "--trials" in few:
            few += ["--trials", "2"]
        return few + (["--methods", "linear", "viapt"] if suite else [])


def run(arguments: list[str]) -> None:
    """Our command in this process; a doctor may find something."""
    try:
        main(arguments)
    except SystemExit as end:
        if end.code and not (arguments[:2] == ["data", "check"] and end.code == 1):
            raise WrongPageError(f"viapt {shlex.join(arguments)} ended with {end.code}") from end


def called(*words: str, folder: Path | None = None) -> str:
    """What another program printed; the current folder is its own unless one is named."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise WrongPageError(f"{shlex.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def check_extra(what: str) -> None:
    """`viapt[NAME]`, or `.[NAME]` in a checkout; several names with commas, extras of ours."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.fullmatch(r"(?:viapt|\.)\[([\w,]+)\]", what)
    if found is None or not {*found[1].split(",")} <= extras.keys():
        raise WrongPageError(f"pip install {what}: viapt has the extras {', '.join(extras)}")
