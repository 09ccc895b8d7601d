"""Code blocks of documents, run as a reader would: in order, in one folder, Python in one namespace.

A block is `python`, `sh` (a command a line), or `text`, which is what the block right before
it printed. Comments that a reader does not see say what else there is to know:

    <!-- skip: next "reason" -->      the next block is not run
    <!-- numbers vary -->             in the next output any number stands for any other
    <!-- invisible-code-block: python
    ... -->                           what the page takes for granted

A line `...` of an output stands for any text. The packaged backbone and names of timm become a tiny one, commands that
train on the packaged suite get tiny sizes; `viapt serve` runs beside the rest of the page.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import SkipTest

import httpx
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from viapt.cli import main

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
BACKBONES = re.compile(r"packaged:vits14|vit_\w+_patch16_224(\.\w+)?")
PORT = re.compile(r"(?<=127\.0\.0\.1:)8000|(?<=--port )8000")
LAUNCHED = re.compile(r"^accelerate launch .* -m (?=viapt )")  # see test_distributed_launch.py
TINY = ["--image-size", "32", "--train", "40", "--val", "20", "--test", "30", "--batch-size", "20"]
SMALLER = {"bench run": [*TINY, "--backbone", "packaged:vits14", "--precision", "float32"]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
PATIENCE = 300  # seconds; machines may be busy


class WrongPageError(AssertionError):
    """A block that does not do what its page says."""


@dataclass
class Reader:
    """One who tries everything on a page.

    Attributes:
        backbone: what stands for the packaged one.
        processes: whether commands are real processes.
        printed: by the last block.
        ran: how many blocks.
        skipped: reasons.
        port: of the server.
        beside: processes that end with the page.
    """

    backbone: str
    processes: bool = False
    printed: str = ""
    ran: int = 0
    skipped: list[str] = field(default_factory=list)
    port: int = field(default_factory=lambda: free_port())
    beside: ExitStack = field(default_factory=ExitStack)

    def read(self, page: Path) -> None:
        """Run the page's blocks in the current folder; the first that is wrong raises with its line."""
        sybil = Sybil(
            [
                CodeBlockParser("python", self.python),
                CodeBlockParser("sh", self.shell),
                CodeBlockParser("text", self.output),
                SkipParser(),
            ]
        )
        document = sybil.parse(page)
        with self.beside:
            for example in document.examples():
                try:
                    example.evaluate()
                except SkipTest as reason:
                    self.skipped.append(str(reason))
                except (Exception, SystemExit) as error:
                    raise WrongPageError(f"{page.name}:{example.line}: {type(error).__name__}: {error}") from error

    def python(self, example: Example) -> None:
        example.parsed = self.tiny(example.parsed)
        with self.listening():
            code = compile("\n" * example.line + example.parsed, example.path, "exec", dont_inherit=True)
            exec(code, example.namespace)

    def shell(self, example: Example) -> None:
        block = self.tiny(example.parsed)
        with self.listening() as heard:
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if words := shlex.split(LAUNCHED.sub("", line), comments=True):
                    self.command(words, line, heard)

    def command(self, words: list[str], line: str, heard: io.StringIO) -> None:
        """One line: ours, or what only a look is taken at, or the shell's."""
        if words[:2] == ["viapt", "serve"]:
            self.beside.enter_context(served(words, self.port))
        elif words[0] == "viapt" and not self.processes:
            more = [self.tiny(word) for word in SMALLER.get(" ".join(words[1:3]), [])]
            with redirect_stdout(heard):
                run(words[1:] + more)
        elif words[:2] == ["pip", "install"]:
            assert extras(words[2]) <= set(PROJECT["optional-dependencies"]), line
        elif words[0] == "make":
            assert words[1] in TARGETS, line
        else:
            heard.write(process(line))

    def output(self, example: Example) -> None:
        """Compare what was printed with what the page says."""
        vary = example.document.text[: example.region.start].rstrip().endswith("<!-- numbers vary -->")
        if not pattern(example.parsed, vary).fullmatch(" ".join(self.printed.split())):
            raise WrongPageError(f"it printed\n{self.printed}\nand the page says\n{example.parsed}")

    @contextmanager
    def listening(self) -> Iterator[io.StringIO]:
        """Keep what is printed."""
        self.ran += 1
        with redirect_stdout(io.StringIO()) as heard:
            yield heard
        self.printed = heard.getvalue()

    def tiny(self, text: str) -> str:
        """A block on the tiny backbone and a port that is free."""
        return PORT.sub(str(self.port), BACKBONES.sub(self.backbone, text))


def run(arguments: list[str]) -> None:
    """Our command in this process."""
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise WrongPageError(f"viapt {shlex.join(arguments)} ended with {end.code}") from end


def process(line: str) -> str:
    """What a line prints in a shell."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-ec", line], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise WrongPageError(f"{line} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def served(words: list[str], port: int) -> Iterator[None]:
    """`viapt serve` until the page ends."""
    command = [sys.executable, "-m", *words] + ([] if "--port" in words else ["--port", str(port)])
    server = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE
        while not ready(port):
            assert server.poll() is None and time.monotonic() < end, f"{shlex.join(words)} does not answer"
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(PATIENCE)


def ready(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def extras(requirement: str) -> set[str]:
    """`viapt[a,b]` to a and b; of anything else, a name that no extra has."""
    found = re.fullmatch(r"viapt(?:\[([\w,]+)\])?", requirement)
    return set((found[1] or "").split(",")) - {""} if found else {requirement}


def pattern(text: str, vary: bool) -> re.Pattern[str]:
    """What an output must match; blank space of any kind is one blank."""
    words = re.escape(" ".join(text.split())).replace(r"\ ", " ")
    if vary:
        words = re.sub(r"\d+(?:(?:\\\.|,|:)\d+)*", lambda _: r"\d+(?:[.,:]\d+)*(?:e-?\d+)?", words)
    return re.compile(words.replace(r"\.\.\.", ".*?"), re.DOTALL)
