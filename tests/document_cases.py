"""Code blocks of documents, run as a reader would: in order, in one folder, Python in one namespace.

A block is `python`, `sh` (a command a line, run by `document_commands.py`), or `text`, which is what the block
right before it printed. Comments that a reader does not see say what else there is to know:

    <!-- skip: next "reason" -->      the next block is not run
    <!-- numbers vary -->             in the next output any number stands for any other
    <!-- invisible-code-block: python
    ... -->                           what the page takes for granted

A line `...` of an output stands for any text. The packaged backbone and names of timm become a tiny one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import SkipTest

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from document_commands import Shell, WrongPageError

BACKBONES = re.compile(r"packaged:vits14|vit_\w+_patch16_224(\.\w+)?")


@dataclass
class Reader:
    """One who tries everything on a page.

    Attributes:
        backbone: what stands for the packaged one.
        printed: by the last block.
        ran: how many blocks.
        skipped: reasons.
    """

    backbone: str
    printed: str = ""
    ran: int = 0
    skipped: list[str] = field(default_factory=list)
    commands: Shell = field(init=False)

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
        document, self.commands = sybil.parse(page), Shell(self.backbone)
        with self.commands.background:
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
        with self.listening():
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                self.commands.run(line)

    def output(self, example: Example) -> None:
        """Compare what was printed with what the page says."""
        vary = example.document.text[: example.region.start].rstrip().endswith("<!-- numbers vary -->")
        if not pattern(example.parsed, vary).fullmatch(" ".join(self.printed.split())):
            raise WrongPageError(f"it printed\n{self.printed}\nand the page says\n{example.parsed}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what is printed."""
        self.ran += 1
        with redirect_stdout(io.StringIO()) as heard:
            yield
        self.printed = heard.getvalue()

    def tiny(self, text: str) -> str:
        """A block on the tiny backbone."""
        return BACKBONES.sub(self.backbone, text)


def pattern(text: str, vary: bool) -> re.Pattern[str]:
    """What an output must match; blank space of any kind is one blank."""
    words = re.escape(" ".join(text.split())).replace(r"\ ", " ")
    if vary:
        words = re.sub(r"\d+(?:(?:\\\.|,|:)\d+)*", lambda _: r"\d+(?:[.,:]\d+)*(?:e-?\d+)?", words)
    return re.compile(words.replace(r"\.\.\.", ".*?"), re.DOTALL)
