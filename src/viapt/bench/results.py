"""A folder of results: for each experiment its records, a page with what they say, and pictures; and an index of all.

Pages are made from the records alone. What a person writes between the two marks of a page stays there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from viapt.bench.caveats import GENERAL
from viapt.bench.experiments import EXPERIMENTS, Experiment
from viapt.bench.findings import Record, findings
from viapt.bench.protocol import Protocol
from viapt.bench.publish import check_statsmodels, in_words
from viapt.bench.records import export, load_failures, load_records
from viapt.bench.shown import remarks
from viapt.bench.store import FINAL, Store
from viapt.bench.suite_tables import data_table
from viapt.checkpoint import replace_file
from viapt.errors import ArtifactError, ConfigError
from viapt.methods import METHODS
from viapt.report.rendering import Plot, check_libraries, render

OPEN, CLOSE = "<!-- conclusion -->", "<!-- /conclusion -->"
UNWRITTEN = "Not written yet."
INDEX = "README.md"
FLAGS = {"read_test"}


def check_results() -> None:
    """Say now that a library for pages is missing.

    Raises:
        ConfigError: one is.
    """
    check_libraries("bench")
    check_statsmodels()


def publish(experiment: Experiment, source: Path, results: Path) -> list[Path]:
    """Write `<experiment>.json`, `<experiment>.md` and pictures, and the index anew.

    Args:
        source: a folder of results of `viapt bench`, or a file that `export` wrote, which may be the one that is
            written.
        results: made if it is not there.

    Returns:
        The paths of records, page and index.

    Raises:
        ConfigError: there are no records of this experiment; a library is not installed.
        ArtifactError: records that cannot be read.
    """
    check_results()
    path = results / f"{experiment.name}.json"
    results.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        with Store(source) as store:
            export(store, path)
    elif source.resolve() != path.resolve():
        load_records(source)
        replace_file(path, source.read_bytes())
    page = write_page(experiment, path)
    return [path, page, write_index(results)]


def write_page(experiment: Experiment, path: Path) -> Path:
    """The page of an experiment beside its records, from these alone.

    Raises:
        ConfigError, ArtifactError: see `publish`.
    """
    protocol, records = load_records(path)
    page = path.with_suffix(".md")
    try:
        values = contents(experiment, protocol, records, load_failures(path), path)
    except (KeyError, TypeError) as error:
        raise incomplete(path, error) from error
    write_pictures(values["figures"], path.parent / "pictures")
    write_text(page, "experiment.md", values)
    return page


def incomplete(path: Path, error: Exception) -> ArtifactError:
    """Records lack something."""
    return ArtifactError(f"{path} holds records without {error}", expected="records by this version of viapt")


def contents(
    experiment: Experiment, protocol: Protocol, records: list[Record], failures: list[dict[str, Any]], path: Path
) -> dict[str, Any]:
    """What the template of a page wants."""
    design = experiment.design(records[0]["dim"])
    names = {entrant.name for entrant in design.entrants}
    own = [record for record in records if record["method"] in names]
    final = [record for record in own if record["trial"] == FINAL]
    if not final:
        raise ConfigError(f"{path} holds no runs of the experiment {experiment.name}")
    found, notes = findings(design, protocol, final)
    others = sorted({record["method"] for record in records} - names)
    notes = [*notes, *remarks(own)] if notes else [GENERAL[0], *remarks(own)]
    if others:
        notes.append(
            f"The records hold others, too, that the experiment does not have (any more): {', '.join(others)}."
        )
    again = {"page made again by": f"viapt bench {experiment.name} --from docs/results/{path.name}"}
    facts = run_facts(protocol, own, path.stem, experiment) | again
    return {
        "title": experiment.title,
        "question": experiment.question,
        "sentences": found.sentences,
        "conclusion": conclusion(path.with_suffix(".md")),
        "figures": [replace(figure, name=f"{experiment.name}-{figure.name}") for figure in found.figures],
        "tables": [*found.tables, data_table(own)],
        "notes": notes,
        "failures": [f"{f['method']}, {f['task']}, seed {f['seed']}: {f['cause']}" for f in failures],
        "facts": facts | {name: in_words(value) for name, value in protocol.to_dict().items()},
        "marks": (OPEN, CLOSE),
    }


def run_facts(
    protocol: Protocol, records: Sequence[Record], name: str, experiment: Experiment | None = None
) -> dict[str, Any]:
    """How records of this name were made: command, hours, seeds, devices, code, libraries.

    Hashes have tables of their own.
    """
    return {
        "runs": f"{len(records)}, {hours(records):.2f} hours of compute (wall time of all jobs)",
        "made by": command(name, experiment, protocol, records),
        "seeds": ", ".join(map(str, tasks_and_seeds(records)[1])),
        "devices": "; ".join(sorted({record["device"] for record in records})),
        "viapt": ", ".join(sorted({record["viapt"] for record in records})),
        "code": ", ".join(sorted({record["job"]["code"].partition("-")[0] for record in records})),
        "libraries": "; ".join(sorted({in_words(record["job"]["versions"]) for record in records})),
    }


def tasks_and_seeds(records: Sequence[Record]) -> tuple[list[str], list[int]]:
    """Of the trainings that count, in order."""
    tasks = sorted({record["task"] for record in records})
    return tasks, sorted({record["seed"] for record in records if record["trial"] == FINAL})


def hours(records: Sequence[Record]) -> float:
    """Of all jobs, one after the other."""
    return sum(record["job_seconds"] for record in records) / 3600


def command(name: str, experiment: Experiment | None, protocol: Protocol, records: Sequence[Record]) -> str:
    """The command that makes the records again, in a folder of their name: a folder has one protocol."""
    tasks, seeds = tasks_and_seeds(records)
    parts = [f"viapt bench {experiment.name if experiment else 'run'}", f"--out runs/{name}"]
    parts.append(f"--tasks {' '.join(tasks)} --seeds {' '.join(map(str, seeds))}")
    normal = Protocol(**experiment.protocol) if experiment else Protocol()
    for field in fields(Protocol):
        value = getattr(protocol, field.name)
        if value == getattr(normal, field.name) or field.name == "space":
            continue
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "image_sizes":
            parts.append("--image-size " + " ".join(f"{task}={side}" for task, side in value.items()))
        else:
            parts.append(option if field.name in FLAGS else f"{option} {value}")
    parts += [f"--search {' '.join(map(in_range, protocol.space.items()))}"] if protocol.space else []
    return " ".join(parts) + ("" if experiment else " --methods " + " ".join(rows_of(records)))


def in_range(pair: tuple[str, Any]) -> str:
    """A part of a search space as `--search` takes it."""
    name, values = pair
    if "choices" in values:
        return f"{name}={','.join(map(str, values['choices']))}"
    return f"{name}={values['low']}..{values['high']}{':log' if values.get('log') else ''}"


def conclusion(page: Path) -> str:
    """What a person wrote into a page that is there."""
    if not page.exists():
        return UNWRITTEN
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(OPEN)}\n(.*?)\n?{re.escape(CLOSE)}", text, re.DOTALL)
    if found is None:
        raise ArtifactError(
            f"{page} lacks the marks {OPEN} and {CLOSE}, so what was written there would be lost",
            remedy="put both back around the conclusion, each on a line of its own",
        )
    return found[1]


def write_index(results: Path) -> Path:
    """`README.md`: every file of records in the folder, the commands, the hours, and the conclusion that is there.

    Raises:
        ArtifactError: records that cannot be read, or an index without its marks.
    """
    rows, commands = [], []
    runs: dict[str, Record] = {}  # each once: two tables may show the same ones
    stems = [path.stem for path in sorted(results.glob("*.json"))]
    for stem in dict.fromkeys([*stems, *EXPERIMENTS]):
        path, experiment = results / f"{stem}.json", EXPERIMENTS.get(stem)
        if stem not in stems:
            rows.append(f"| {stem} | {EXPERIMENTS[stem].question} | 0 | 0 | not run yet |")
            commands.append(f"viapt bench {stem} --out runs/{stem}")
            continue
        protocol, records = load_records(path)
        runs |= {record["key"]: record for record in records}
        size = f"training images {protocol.train}, epochs {protocol.epochs}, side {protocol.image_size} px"
        question = experiment.question if experiment else f"A table of methods: {size}."
        pages = [name for name in (f"{stem}.md", f"{stem}/report.md") if (results / name).exists()]
        page = f"[{stem}]({pages[0]})" if pages else stem
        rows.append(f"| {page} | {question} | {len(records)} | {hours(records):.2f} | [records]({path.name}) |")
        commands.append(command(stem, experiment, protocol, records))
        if experiment:
            commands.append(f"viapt bench {stem} --from {path.name} --results .  # the page alone")
        else:
            commands.append(f"viapt bench report {path.name} --out {stem} --part {protocol.part}  # the tables alone")
    index = results / INDEX
    total = hours(list(runs.values()))
    values = {"rows": rows, "commands": commands, "hours": f"{total:.2f}", "conclusion": conclusion(index)}
    write_text(index, "results.md", values | {"marks": (OPEN, CLOSE)})
    return index


def rows_of(records: Sequence[Record]) -> list[str]:
    """The rows of a table as `--methods` takes them; with their learning rate where it was another default's."""
    return list(dict.fromkeys(as_given(record["method"], rate_of(record, records)) for record in records))


def rate_of(record: Record, records: Sequence[Record]) -> float | None:
    """The learning rate of a row, if neither its name nor today's default says it, and no search found it."""
    rate, method = record["job"]["training"].get("lr"), METHODS.get(record["job"]["method"])
    searched, said = any(one["trial"] != FINAL for one in records), "lr=" in record["method"]
    return None if searched or said or method is None or rate == method.learning_rate else rate


def as_given(name: str, rate: float | None = None) -> str:
    """ "viapt(kept_dim=32, lr=0.01)" as the command line takes it."""
    method, _, listed = name.partition("(")
    settings = re.split(r", (?=[a-z_]+=)", listed.removesuffix(")")) if listed else []
    settings += [] if rate is None else [f"lr={rate}"]
    return f"'{method}:{';'.join(settings)}'" if settings else method


def write_pictures(figures: Sequence[Plot], folder: Path) -> None:
    """PNG files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        replace_file(folder / f"{figure.name}.png", figure.png)


def write_text(path: Path, template: str, values: dict[str, Any]) -> None:
    """A page, whole or not at all."""
    replace_file(path, render("viapt.bench", template, values).encode())
