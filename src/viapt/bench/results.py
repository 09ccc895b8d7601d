"""A folder of results: for each experiment its records, a page with what they say, and pictures; and an index of all.

Pages are made from the records alone. What a person writes between the two marks of a page stays there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from viapt.bench.caveats import GENERAL
from viapt.bench.commands import command, rate_of, report_command, tasks_and_seeds
from viapt.bench.experiments import EXPERIMENTS, Experiment
from viapt.bench.findings import Record, findings
from viapt.bench.grid import SHOWN
from viapt.bench.protocol import Protocol, differences
from viapt.bench.publish import REFERENCE, check_statsmodels, in_words, write_report
from viapt.bench.records import export, failures_at, load_failures, load_records, records_at, scores_of
from viapt.bench.shown import by_cause, remarks
from viapt.bench.store import FINAL, PLACE, Cell, Failure, Store
from viapt.bench.suite_tables import data_table
from viapt.bench.suites import title
from viapt.checkpoint import replace_file
from viapt.errors import ArtifactError, ConfigError
from viapt.methods import METHODS
from viapt.report.rendering import Plot, check_libraries, markdown_cell, render

OPEN, CLOSE = "<!-- conclusion -->", "<!-- /conclusion -->"
UNWRITTEN = "Not written yet."
INDEX = "README.md"
KEEP = "another folder of results with --results DIR; or --replace, to put the new records in their place"


def check_results() -> None:
    """Say now that a library for pages is missing.

    Raises:
        ConfigError: one is.
    """
    check_libraries("bench")
    check_statsmodels()


def publish(experiment: Experiment, source: Path, results: Path, *, overwrite: bool = False) -> list[Path]:
    """Write `<experiment>.json`, `<experiment>.md` and pictures, and the index anew.

    Args:
        source: a folder of results of `viapt bench`, or a file that `export` wrote, which may be the one that is
            written.
        results: made if it is not there.
        overwrite: also records that the source lacks, or that are of another protocol.

    Returns:
        The paths of records, page and index.

    Raises:
        ConfigError: there are no records of this experiment; some that are there would be lost; a library is not
            installed.
        ArtifactError: records that cannot be read.
    """
    check_results()
    path = results / f"{experiment.name}.json"
    if source.resolve() != path.resolve():
        protocol, records = records_at(source)
        if not overwrite:
            check_protocol(protocol, path)
            check_kept(records, source, path)
        write_records(source, path)
    page = write_page(experiment, path)
    return [path, page, write_index(results)]


def check_protocol(protocol: Protocol, path: Path) -> None:
    """Refuse to put records of another protocol in the place of those that are there.

    Args:
        protocol: of the new ones; a precision that is not decided yet may become that of the others.

    Raises:
        ConfigError: naming the differences.
        ArtifactError: what is there cannot be read.
    """
    if not path.exists():
        return
    there, here = load_records(path)[0].to_dict(), protocol.to_dict()
    if here["precision"] == "auto":
        here["precision"] = there["precision"]
    if changed := differences(there, here):
        raise ConfigError(f"{path} holds records of another protocol: {'; '.join(changed)}", remedy=KEEP)


def check_kept(records: Sequence[Record], source: Path, path: Path) -> None:
    """Refuse to lose records that are there.

    Raises:
        ConfigError: naming some of them.
        ArtifactError: what is there cannot be read.
    """
    keys = {record["key"] for record in records}
    there = load_records(path)[1] if path.exists() else []
    lost = [Cell(*(record[name] for name in PLACE)) for record in there if record["key"] not in keys]
    if lost:
        more = " and others" if len(lost) > SHOWN else ""
        named = "; ".join(map(str, lost[:SHOWN]))
        raise ConfigError(
            f"{path} holds {len(lost)} of {len(there)} records that {source} lacks: {named}{more}", remedy=KEEP
        )


def write_records(source: Path, path: Path) -> None:
    """The records of a folder, or a copy of a file of records."""
    if source.is_dir():
        with Store(source) as store:
            export(store, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, source.read_bytes())


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
    experiment: Experiment, protocol: Protocol, records: list[Record], failures: list[Failure], path: Path
) -> dict[str, Any]:
    """What the template of a page wants."""
    design = experiment.design(records[0]["dim"])
    names = {entrant.name for entrant in design.entrants}
    own = [record for record in records if record["method"] in names]
    final = [record for record in own if record["trial"] == FINAL]
    if not final:
        raise ConfigError(f"{path} holds no runs of the experiment {experiment.name}")
    empty = [failure.cell for failure in failures if failure.cell.trial == FINAL and failure.cell.method in names]
    found, notes = findings(design, protocol, final, empty)
    others = sorted({record["method"] for record in records} - names)
    notes = [*(notes or GENERAL[:1]), *remarks(own), *on_rates(own)]
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
        "failures": by_cause((failure.cell, failure.cause) for failure in failures),
        "facts": facts | {name: in_words(value) for name, value in protocol.to_dict().items()},
        "marks": (OPEN, CLOSE),
    }


def on_rates(records: Sequence[Record]) -> list[str]:
    """A note on each entrant that its command would train at another learning rate than it was."""
    rates = dict.fromkeys((one["method"], one["job"]["method"], rate_of(one, records)) for one in records)
    return [
        f"{name} was trained at a learning rate of {rate}; its default now is {METHODS[method].learning_rate}, with "
        "which the command under 'What was run' would train it."
        for name, method, rate in rates
        if rate is not None
    ]


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


def hours(records: Sequence[Record]) -> float:
    """Of all jobs, one after the other; one that several rows share counts once."""
    return sum({record["key"]: record["job_seconds"] for record in records}.values()) / 3600


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
    every: list[Record] = []
    stems = [path.stem for path in sorted(results.glob("*.json"))]
    for stem in dict.fromkeys([*stems, *EXPERIMENTS]):
        path, experiment = results / f"{stem}.json", EXPERIMENTS.get(stem)
        if stem not in stems:
            rows.append(f"| {stem} | {EXPERIMENTS[stem].question} | 0 | 0 | not run yet |")
            commands.append(f"viapt bench {stem} --out runs/{stem}")
            continue
        protocol, records = load_records(path)
        every += records
        images = title(protocol.suite) if protocol.suite else f"training images {protocol.train}"
        size = f"{images}, epochs {protocol.epochs}, side {protocol.image_size} px"
        question = experiment.question if experiment else f"A table of methods: {size}."
        pages = [name for name in (f"{stem}.md", f"{stem}/report.md") if (results / name).exists()]
        page = f"[{stem}]({pages[0]})" if pages else stem
        rows.append(f"| {page} | {question} | {len(records)} | {hours(records):.2f} | [records]({path.name}) |")
        commands.append(command(stem, experiment, protocol, records))
        if experiment:
            commands.append(f"viapt bench {stem} --from {path.name} --results .  # the page alone")
        else:
            commands.append(report_command(stem, **options_of(results / stem / "report.md", protocol, records)))
    index = results / INDEX
    values = {"rows": rows, "commands": commands, "hours": f"{hours(every):.2f}", "conclusion": conclusion(index)}
    write_text(index, "results.md", values | {"marks": (OPEN, CLOSE)})
    return index


def write_reports(results: Path) -> list[Path]:
    """The reports of tables of methods that are there, from records alone and with the options that they had."""
    written: list[Path] = []
    for path in sorted(results.glob("*.json")):
        report = path.with_suffix("") / "report.md"
        if path.stem not in EXPERIMENTS and report.exists():
            written += report_on(path, report.parent, **options_of(report, *load_records(path)))
    return written


def report_on(source: Path, out: Path, reference: str, part: str, max_parameters: int | None) -> tuple[Path, Path]:
    """The report of a folder of results, or of a file that `export` wrote.

    Raises:
        ConfigError, DataError: see `write_report`.
        ArtifactError: records that cannot be read.
    """
    protocol, records = records_at(source)
    try:
        facts = run_facts(protocol, records, source.stem) | protocol.to_dict()
    except (KeyError, TypeError) as error:
        raise incomplete(source, error) from error
    options: dict[str, Any] = {"part": part, "max_parameters": max_parameters}
    made_from: dict[str, Any] = {"records": records, "failures": failures_at(source)}
    return write_report(scores_of(protocol, records), out, reference, facts, **options, **made_from)


def options_of(report: Path, protocol: Protocol, records: Sequence[Record]) -> dict[str, Any]:
    """How a report that is there was made, in its own words, or how one would be: `reference`, `part` and so on."""
    options = {"reference": REFERENCE, "part": protocol.part, "max_parameters": None}
    if not report.exists():
        return options
    text = report.read_text(encoding="utf-8")
    limit = re.search(r"learn more than ([\d,]+) numbers", text)
    names = sorted({record["method"] for record in records})
    return {
        "reference": next((name for name in names if f"The reference is {markdown_cell(name)}." in text), REFERENCE),
        "part": next((part for part in ("val", "test") if f"measured on the {part} part" in text), protocol.part),
        "max_parameters": int(limit[1].replace(",", "")) if limit else None,
    }


def write_pictures(figures: Sequence[Plot], folder: Path) -> None:
    """PNG files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        replace_file(folder / f"{figure.name}.png", figure.png)


def write_text(path: Path, template: str, values: dict[str, Any]) -> None:
    """A page, whole or not at all."""
    replace_file(path, render("viapt.bench", template, values).encode())
