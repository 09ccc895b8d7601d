"""All records of a folder as one small JSON file, to be kept with the code: tables are made again from it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from viapt.bench.protocol import Protocol
from viapt.bench.scores import Score
from viapt.bench.store import FINAL, Store
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


def load_failures(path: Path) -> list[dict[str, Any]]:
    """The failures in a file that `export` wrote: method, task, seed, trial, cause, times."""
    return json.loads(path.read_bytes()).get("failures", [])


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
