"""The command `viapt`. Nothing heavy is imported before a command runs: `--help` must answer at once."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from viapt.cli import bench, data, use
from viapt.cli.convert import convert
from viapt.cli.demo import demo
from viapt.cli.explain import explain as explain_images
from viapt.cli.export import export
from viapt.cli.fit import fit
from viapt.cli.processes import check_processes, is_told_elsewhere, one_speaks
from viapt.cli.serve import serve
from viapt.errors import ViaptError
from viapt.tables import say

USER_ERROR, BUG, INTERRUPTED = 2, 70, 130
RESUMED = ("fit", "demo", "bench")


class Commands(TyperGroup):
    """All commands. Ctrl-C is answered here, as typer would not say what it means."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            saved = "What was done is saved; run the same command to resume."
            say(f"Interrupted. {saved}" if ctx.invoked_subcommand in RESUMED else "Interrupted.")
            raise SystemExit(INTERRUPTED) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        check_processes(name)
        return name, command, rest


app = typer.Typer(
    cls=Commands,
    name="viapt",
    help="Adapt a frozen vision transformer to your own images with instance-aware prompts.",
    epilog="Every command takes --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(fit)
app.command()(use.evaluate)
app.command()(use.predict)
app.command()(use.inspect)
app.command("explain")(explain_images)
app.command()(export)
app.command()(serve)
app.command()(convert)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    """Adapt a frozen vision transformer to your own images with instance-aware prompts."""
    if show:
        from importlib.metadata import version as installed

        print(f"viapt {installed('viapt')}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `viapt` with these arguments (by default the process's), and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end]
    warnings.showwarning = lambda message, *_: say(f"Warning: {message}")
    try:
        with one_speaks():
            app([argument for argument in given[:end] if argument != "--debug"] + given[end:], prog_name="viapt")
    except Exception as error:
        if debug:
            traceback.print_exc()
        text, code = explain(error)
        if not is_told_elsewhere(error):
            say("Error: " + " ".join(text.split()))
        raise SystemExit(code) from None
    raise SystemExit(0)


def explain(error: Exception) -> tuple[str, int]:
    """One paragraph for the user, and the exit code."""
    if isinstance(error, ViaptError):
        return str(error), USER_ERROR
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        remedy = "To do: a smaller --batch-size, a larger --accumulate, or --checkpointing."
        return f"memory is exhausted ({error}). {remedy}", USER_ERROR
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror, USER_ERROR
    remedy = "Please report it; --debug shows the traceback."
    return f"this is a bug in viapt ({type(error).__name__}: {error}). {remedy}", BUG
