"""All records of a folder as one small JSON file, to be kept with the code: tables are made again from it alone.

`restore` is the way back: a folder on another machine goes on where the file ends, and several files become one table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from viapt.bench.jobs import Job, Outcome
from viapt.bench.protocol import Protocol, differences
from viapt.bench.scores import Score
from viapt.bench.store import FILE, FINAL, PLACE, Cell, Failure, Store
from viapt.checkpoint import replace_file
from viapt.errors import ArtifactError, ConfigError

FORMAT = 1


def export(store: Store, path: Path) -> int:
    """Write protocol, records and failures of a folder, a line for each; the file appears whole or not at all.

    What all jobs have in common is written once.

    Returns:
        How many records.

    Raises:
        ConfigError: there are none.
    """
    records, protocol = store.records(), store.protocol()
    if not records or protocol is None:
        raise ConfigError(f"{store.path.parent} holds no results yet")
    jobs = [record["job"] for record in records]
    common = {name: value for name, value in jobs[0].items() if all(job[name] == value for job in jobs)}
    for record in records:
        record["job"] = {name: value for name, value in record["job"].items() if name not in common}
    failures = [vars(failure.cell) | {"cause": failure.cause, "times": failure.times} for failure in store.failures()]
    head = {"format": FORMAT, "protocol": protocol.to_dict(), "common": common}
    head |= {} if store.optuna() is None else {"optuna": store.optuna()}
    parts = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
    parts += [f'"{name}": [\n{lines(values)}\n]' for name, values in (("records", records), ("failures", failures))]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, ("{" + ",\n".join(parts) + "}\n").encode())
    return len(records)


def lines(values: list[dict[str, Any]]) -> str:
    """Elements of a JSON list, one a line."""
    return ",\n".join(json.dumps(value) for value in values)


def load_records(path: Path) -> tuple[Protocol, list[dict[str, Any]]]:
    """What `export` wrote: the protocol, and the records as the store has them.

    Raises:
        ArtifactError: the file is missing, damaged, or of a newer version.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["format"] > FORMAT:
            raise ArtifactError(f"{path} has format {content['format']}", expected=f"up to {FORMAT}")
        records = [record | {"job": content["common"] | record["job"]} for record in content["records"]]
        return Protocol.from_dict(content["protocol"]), records
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds no exported records ({type(error).__name__}: {error})") from error


def restore(paths: Sequence[Path], folder: Path) -> int:
    """Make a folder of results from files that `export` wrote: jobs that are in them count as done.

    The folder also remembers who read which test split. It appears whole or not at all.

    Returns:
        How many records.

    Raises:
        ArtifactError: a file is damaged, or a record is not what its key says.
        ConfigError: the folder holds results already; the files have different protocols, or different records for
            the same method, task and seed.
    """
    if (folder / FILE).exists():
        raise ConfigError(f"{folder} holds results already", remedy="choose another folder")
    found = [load_records(path) for path in paths]
    jobs: dict[Cell, tuple[Path, Job, dict[str, Any]]] = {}
    for path, (protocol, records) in zip(paths, found, strict=True):
        if changed := differences(found[0][0].to_dict(), protocol.to_dict()):
            raise ConfigError(
                f"{paths[0]} and {path} have different protocols: {'; '.join(changed)}",
                expected="files of one protocol: numbers of two do not belong into one table",
            )
        for record in records:
            cell, job = checked(path, record)
            other, known, _ = jobs.setdefault(cell, (path, job, record))
            if known != job:
                changed = "; ".join(differences(known.to_dict(), job.to_dict()))
                raise ConfigError(f"{cell} is in {other} and in {path}, and differs: {changed}", expected="one of them")
    samplers = {path: version for path in paths if (version := json.loads(path.read_bytes()).get("optuna"))}
    if len(set(samplers.values())) > 1:
        told = ", ".join(f"{path} with optuna {version}" for path, version in samplers.items())
        raise ConfigError(f"Searched differently: {told}", expected="files of one version: others ask for other points")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as draft:
        with Store(Path(draft), create=True) as store:
            store.adopt(found[0][0], next(iter(samplers.values()), None))
            store.expect({cell: job.key for cell, (_, job, _) in jobs.items()})
            for cell, (_, job, record) in jobs.items():
                if job.read_test and cell.trial == FINAL:
                    store.open_exam(cell, job)
                store.settle(job.key, Outcome({name: record[name] for name in record if name not in (*PLACE, "key")}))
        (Path(draft) / FILE).replace(folder / FILE)
    return len(jobs)


def checked(path: Path, record: dict[str, Any]) -> tuple[Cell, Job]:
    """Place and job of a record.

    Raises:
        ArtifactError: it is not whole, or its job does not have its key.
    """
    try:
        cell, job, key = Cell(*(record[name] for name in PLACE)), Job(**record["job"]), record["key"]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds a record that is not whole ({error})") from error
    if job.key != key:
        raise ArtifactError(
            f"{path}: the job of {cell} has the key {job.key[:12]}, and its record says {key[:12]}",
            expected="records as `viapt bench export` wrote them",
            remedy="restore the file from a copy",
        )
    return cell, job


def load_failures(path: Path) -> list[Failure]:
    """The failures in a file that `export` wrote, their traces left out.

    Raises:
        ArtifactError: one is not whole.
    """
    try:
        found = json.loads(path.read_bytes()).get("failures", [])
        return [Failure(Cell(*(one[name] for name in PLACE)), one["cause"], "", one["times"]) for one in found]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds a failure that is not whole ({error})") from error


def failures_at(source: Path) -> list[Failure]:
    """What failed, by a folder of results or a file that `export` wrote.

    Raises:
        ConfigError, ArtifactError: see `records_at`.
    """
    if not source.is_dir():
        return load_failures(source)
    with Store(source) as store:
        return store.failures()


def records_at(source: Path) -> tuple[Protocol, list[dict[str, Any]]]:
    """Protocol and records of a folder of results, or of a file that `export` wrote.

    Raises:
        ConfigError: the folder holds none.
        ArtifactError: they cannot be read.
    """
    return stored_records(source) if source.is_dir() else load_records(source)


def load_scores(path: Path) -> list[Score]:
    """The scores in a file that `export` wrote, those of searches left out.

    Raises:
        ArtifactError: see `load_records`.
    """
    return scores_of(*load_records(path))


def stored_records(folder: Path) -> tuple[Protocol, list[dict[str, Any]]]:
    """Protocol and records of a folder of results.

    Raises:
        ConfigError: it holds none.
        ArtifactError: its store cannot be used.
    """
    with Store(folder) as store:
        records, protocol = store.records(), store.protocol()
    if not records or protocol is None:
        raise ConfigError(f"{folder} holds no results yet")
    return protocol, records


def stored_scores(folder: Path) -> list[Score]:
    """The scores in a folder of results, those of searches left out.

    Raises:
        ConfigError, ArtifactError: see `stored_records`.
    """
    return scores_of(*stored_records(folder))


def scores_of(protocol: Protocol, records: list[dict[str, Any]]) -> list[Score]:
    """One score for each record and each part that it read, validation first."""
    return [
        Score(
            method=record["method"],
            task=record["task"],
            seed=record["seed"],
            value=record[part][protocol.metric],
            metric=protocol.metric,
            part=part,
            learnable_parameters=record["learnable_parameters"],
            seconds=record["seconds"],
            peak_memory_mib=record["peak_memory_mib"],
            key=record["key"],
        )
        for part in ("val", "test")
        for record in records
        if record["trial"] == FINAL and record[part] is not None
    ]
