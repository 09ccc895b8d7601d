"""What all reports share: pictures with words, cells of tables, and templates on one page's looks."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viapt.errors import ConfigError
from viapt.report.plots import DPI


@dataclass(frozen=True)
class Plot:
    """A rendered picture: file name without suffix, what it shows, and the PNG.

    `words` tell what is to be seen to those who do not see it; the caption does by default.
    """

    name: str
    caption: str
    png: bytes
    words: str = ""

    @property
    def alt(self) -> str:
        """The text that stands for the picture."""
        return self.words or self.caption

    @property
    def width(self) -> int:
        """In CSS pixels: so wide that all pictures have letters of one size."""
        pixels = int.from_bytes(self.png[16:20], "big")  # the PNG header begins with width and height
        return round(96 * pixels / DPI)

    @property
    def inline(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def check_libraries(extra: str = "report") -> None:
    """Raises ConfigError when jinja2 or matplotlib is not installed."""
    try:
        import jinja2  # noqa: F401 - to say now that it is missing
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"A report needs {error.name}, which is not installed", remedy=f"pip install 'viapt[{extra}]'"
        ) from error


def render(package: str, name: str, values: Mapping[str, Any]) -> str:
    """The template `<name>.jinja` of a package; it may extend those of this one. HTML is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, "."), jinja2.PackageLoader("viapt.report", ".")]),
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = markdown_cell
    return environment.get_template(f"{name}.jinja").render(values)


def write_pictures(plots: list[Plot], folder: Path) -> None:
    """PNG files in `folder/pictures`, where the Markdown looks for them."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        (pictures / f"{plot.name}.png").write_bytes(plot.png)


def markdown_cell(value: object) -> str:
    """Text that cannot break out of a cell of a Markdown table, nor become HTML."""
    text = " ".join(str(value).split())
    for character in "\\`*_|<>[]":
        text = text.replace(character, "\\" + character)
    return text
