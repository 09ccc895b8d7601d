"""The store: transactions, several processes, damage, and one reading of each test split."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from viapt.bench.jobs import Job, Outcome
from viapt.bench.protocol import Protocol
from viapt.bench.store import FILE, Cell, Store
from viapt.errors import ArtifactError, ConfigError, DataError

JOB = Job(
    method="viapt",
    options={"kept_dim": 4, "generator_kernels": (1, 3)},
    task="elpv",
    data_hash="d",
    split_hash="s",
    split_seed=0,
    images={"train": 4, "val": 2, "test": 2},
    backbone="b",
    weights=None,
    fingerprint="f",
    image_size=32,
    precision="float32",
    device="cpu",
    augmentation="none",
    training={"lr": 0.1, "epochs": 1},
    read_test=True,
    rounds=0,
    draws=0,
    seed=0,
    code="1-2",
    versions={"torch": "2"},
    suite={"name": "vtab-1k", "train_on": ["train", "val"]},
)
CELL = Cell("viapt", "elpv", 0)
DONE = Outcome(record={"val": {"accuracy": 0.5}})


def changed(values: dict[str, Any]) -> dict[str, Any]:
    """One name more."""
    return values | {"another": next(iter(values.values()))}


def test_everything_in_a_job_is_in_its_key():
    other = {str: "x", int: 7, bool: False, type(None): "x"}
    keys = {JOB.key}
    for name, value in vars(JOB).items():
        keys.add(replace(JOB, **{name: changed(value) if isinstance(value, dict) else other[type(value)]}).key)
    assert len(keys) == 1 + len(vars(JOB))
    for job in (JOB, replace(JOB, suite=None)):
        assert Job(**json.loads(json.dumps(job.to_dict()))).key == job.key  # as it travels to other processes
    assert "suite" not in replace(JOB, suite=None).to_dict()  # packaged tasks keep the keys that they had


def test_what_is_settled_stays(tmp_path):
    with Store(tmp_path, create=True) as store:
        store.expect({CELL: None, Cell("viapt", "elpv", 1): None})
        assert [cell.seed for cell in store.open_cells()] == [0, 1]
        store.expect({CELL: "k"})
        for times in (1, 2):
            assert store.settle("k", Outcome(cause=f"cause {times}", trace="t"))
        (failure,) = store.failures()
        assert (failure.cell, failure.cause, failure.times) == (CELL, "cause 2", 2)
        assert store.settle("k", DONE) and not store.failures()
        assert not store.settle("k", Outcome(record={"val": {"accuracy": 0.9}}))
        assert not store.settle("k", Outcome(cause="late"))
    with Store(tmp_path) as store:
        assert store.result("k") == DONE.record and not store.failures()
        (record,) = store.records()
        assert record["method"] == "viapt" and record["trial"] == -1 and record["val"] == {"accuracy": 0.5}
        assert store.open_cells() == [Cell("viapt", "elpv", 1)]


def test_a_transaction_happens_or_does_not(tmp_path):
    with Store(tmp_path, create=True) as store:
        with pytest.raises(ZeroDivisionError), store.transaction() as tell:
            tell("INSERT INTO results VALUES ('k', '{}')")
            raise ZeroDivisionError
        assert store.result("k") is None


def test_one_protocol_for_a_folder(tmp_path):
    with Store(tmp_path, create=True) as store:
        assert store.protocol() is None
        store.adopt(Protocol(epochs=3))
        store.adopt(Protocol(epochs=3))
        with pytest.raises(ConfigError, match="epochs 3 there, 4 here"):
            store.adopt(Protocol(epochs=4))
        assert store.protocol() == Protocol(epochs=3)


def test_a_search_keeps_its_version_of_optuna(tmp_path):
    for name, first in (("unknown", None), ("known", "4.5.0")):
        with Store(tmp_path / name, create=True) as store:
            store.adopt(Protocol(trials=2), first)
            assert store.optuna() == first and store.protocol() == Protocol(trials=2)
            store.adopt(Protocol(trials=2), "4.5.0")
            if first is None:
                store.adopt(Protocol(trials=2), "5.0.0")  # nobody knows
                continue
            with pytest.raises(ConfigError, match=r"with optuna 4\.5\.0, and 5\.0\.0 is installed.*optuna==4\.5\.0"):
                store.adopt(Protocol(trials=2), "5.0.0")


def test_a_test_split_is_read_once(tmp_path):
    with Store(tmp_path, create=True) as store:
        assert not store.check_exam(CELL, JOB) and store.open_exam(CELL, JOB) and store.check_exam(CELL, JOB)
        assert not store.open_exam(CELL, replace(JOB))  # killed and done again: the same numbers
        assert store.open_exam(Cell("viapt", "elpv", 1), replace(JOB, seed=1))
        for ask in (store.check_exam, store.open_exam):
            with pytest.raises(DataError, match=r"read on .* by another job \(code '1-2' there, '1-3' here\)"):
                ask(CELL, replace(JOB, code="1-3"))
        store.withdraw_exam(CELL)
        assert store.open_exam(CELL, replace(JOB, code="1-3"))
        assert not store.open_exam(Cell("viapt", "elpv", 1), replace(JOB, seed=1))


def write_many(folder: Path, firsts: multiprocessing.SimpleQueue) -> None:
    with Store(folder) as store:
        firsts.put([key for key in map(str, range(8)) if store.settle(key, DONE)])


def test_several_processes_write_each_result_once(tmp_path):
    Store(tmp_path, create=True).connection.close()
    context = multiprocessing.get_context("forkserver")
    firsts = context.SimpleQueue()
    processes = [context.Process(target=write_many, args=(tmp_path, firsts)) for _ in range(3)]
    for process in processes:
        process.start()
    written = [key for _ in processes for key in firsts.get()]
    for process in processes:
        process.join()
    assert sorted(written, key=int) == list(map(str, range(8)))


def die_within(folder: Path) -> None:
    with Store(folder) as store, store.transaction() as tell:
        tell("INSERT INTO results VALUES ('half', '{}')")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_within_a_transaction_leaves_the_store_as_it_was(tmp_path):
    with Store(tmp_path, create=True) as store:
        store.settle("k", DONE)
        process = multiprocessing.get_context("forkserver").Process(target=die_within, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with Store(tmp_path) as store:
        assert store.result("half") is None and store.result("k") is not None
        assert store.settle("half", DONE)


def filled(folder: Path) -> Path:
    with Store(folder, create=True) as store, store.transaction() as tell:
        for number in range(200):
            tell("INSERT INTO results VALUES (?, ?)", (str(number), "x" * 200))
    return folder / FILE


def test_a_truncated_file_is_refused(tmp_path):
    path = filled(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    for create in (False, True):
        with pytest.raises(ArtifactError, match=r"damaged.*copy"):
            Store(tmp_path, create=create)


def test_damage_in_the_middle_is_refused(tmp_path):
    path = filled(tmp_path)
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        Store(tmp_path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / FILE
    with pytest.raises(ConfigError, match="holds no"):
        Store(tmp_path)
    path.write_text("notes" * 1000)
    with pytest.raises(ArtifactError, match="damaged"):
        Store(tmp_path, create=True)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(ArtifactError, match="not made by viapt"):
        Store(tmp_path, create=True)
    path.unlink()
    with Store(tmp_path, create=True) as store:
        store.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ArtifactError, match="format 99"):
        Store(tmp_path)


def test_a_file_that_somebody_keeps_is_told(tmp_path):
    Store(tmp_path, create=True).connection.close()
    holder = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ArtifactError, match="kept by another program"):
        Store(tmp_path, patience=0.05)
    holder.execute("COMMIT")
    with Store(tmp_path, patience=0.05) as store:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ArtifactError, match="kept by another program"):
            store.settle("k", DONE)
        holder.execute("ROLLBACK")
        assert store.settle("k", DONE)
    holder.close()
