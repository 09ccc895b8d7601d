"""Where jobs are done: processes on this machine, or a Ray cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from viapt.bench.jobs import Job, Outcome, work
from viapt.device import CPU_ONLY, accelerator_elsewhere, default_device
from viapt.ray_cluster import connect, import_ray


@runtime_checkable
class Engine(Protocol):
    """Does jobs; entered before the first, and left after the last or when nobody wants them any more."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @property
    def device(self) -> str:
        """The kind of device that a job finds there."""
        ...

    def room(self) -> int:
        """Jobs that are done at a time, 1 at least; it may change. More, if they are given, have to wait."""
        ...

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Have a job done; in the end an `Outcome` in plain JSON types, or any exception."""
        ...


class LocalEngine:
    """Each job in a process of its own, so many at a time.

    A process that dies takes its job along and no other; when this process dies, or wants no more, they die with it.

    Args:
        workers: processes at a time.
        threads: of each.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["viapt.bench.jobs"])
        self.processes: set[BaseProcess] = set()
        self.lock, self.stopped = threading.Lock(), False

    def __enter__(self) -> LocalEngine:
        self.pool = ThreadPoolExecutor(self.workers, thread_name_prefix="job")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.kill()
        self.pool.shutdown(cancel_futures=True)

    @property
    def device(self) -> str:
        return default_device().type

    def room(self) -> int:
        return self.workers

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        return self.pool.submit(self.supervised, job)

    def supervised(self, job: Job) -> dict[str, Any]:
        """A job in a process, watched from a thread."""
        receiver, sender = self.context.Pipe(duplex=False)
        arguments = job.to_dict(), self.threads, dict(os.environ), sender
        process = self.context.Process(target=child, args=arguments, daemon=True)
        with self.lock:
            if self.stopped:
                return vars(Outcome(cause="not started", begun=False))
            process.start()
            self.processes.add(process)
        sender.close()
        try:
            wait([receiver, process.sentinel])
            try:
                return json.loads(receiver.recv_bytes())
            except EOFError:
                process.join()
                return vars(Outcome(cause=death(process.exitcode)))
        finally:
            receiver.close()
            process.join()
            with self.lock:
                self.processes.discard(process)


def child(job: dict[str, Any], threads: int, environment: dict[str, str], sender: Connection) -> None:
    """The process of a job, in its parent's environment (the fork server has that of its own start).

    Ctrl-C is its parent's business.
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, daemon=True).start()
    sender.send_bytes(json.dumps(work(job, threads)).encode())
    sender.close()


def die_with_parent() -> None:
    """Nobody is left who would take the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def death(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory: fewer --workers" if name == "SIGKILL" else ""
        return f"The process was killed ({name}{hint})"
    return f"The process ended without a result (exit code {code})"


class RayEngine:
    """Each job as a Ray task in a process of its own, on whatever node has room.

    A task whose node or process dies is done again elsewhere; Ray does that, and the store takes one result only.

    Args:
        address: of a cluster, as `ray.init` takes it; None: one on this machine.
        workers: processes at a time on this machine, where there is no address.
        threads: CPUs that a job takes.
        gpus: GPUs that a job takes, for instance 0.5.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, address: str | None, workers: int, threads: int, gpus: float = 0.0) -> None:
        import_ray()
        self.address, self.workers, self.threads, self.gpus = address, workers, threads, gpus

    def __enter__(self) -> RayEngine:
        self.ray = connect(self.address, self.workers * self.threads)
        options = {"num_cpus": self.threads, "num_gpus": self.gpus, "max_retries": RETRIES, "max_calls": 1}
        self.task = self.ray.remote(**options)(work if self.gpus else work_on_cpu)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ray.shutdown()

    @property
    def device(self) -> str:
        """Without GPUs the CPU; with them the kind of this machine for a cluster here, else the most likely one."""
        if not self.gpus:
            return "cpu"
        return default_device().type if self.address is None else accelerator_elsewhere()

    def room(self) -> int:
        each = {"CPU": float(self.threads), "GPU": float(self.gpus)}
        return max(1, sum(places(node["Resources"], each) for node in self.ray.nodes() if node["Alive"]))

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        return self.task.remote(job.to_dict(), self.threads).future()


def places(resources: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many times a node has what each job takes."""
    return min(int(resources.get(name, 0.0) / wanted + 1e-6) for name, wanted in each.items() if wanted)


def work_on_cpu(job: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """`work` in a process of its own, in which Ray may leave GPUs visible that nobody asked for."""
    os.environ[CPU_ONLY] = "true"
    return work(job, threads)


RETRIES = 3  # after the death of a node or process; a job that fails by itself is not repeated
