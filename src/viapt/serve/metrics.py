"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics(Collector):
    """Counters of one application, in a registry of its own.

    Args:
        replica: a name that every sample carries, where any of several processes may be the one that is asked.
    """

    def __init__(self, replica: str | None = None) -> None:
        self.registry, self.replica = CollectorRegistry(), replica
        self.requests = Counter("viapt_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "viapt_request_seconds",
            "From the first byte to the answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter("viapt_images", "Images classified", registry=self.registry)
        self.batch_rows = Histogram("viapt_batch_rows", "Rows computed together", buckets=ROWS, registry=self.registry)
        self.batch_requests = Histogram(
            "viapt_batch_requests", "Requests computed together", buckets=ROWS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "viapt_batch_seconds", "Time to compute them", buckets=SECONDS, registry=self.registry
        )
        self.waiting = Gauge("viapt_queue_rows", "Rows admitted and not yet answered", registry=self.registry)
        self.tasks = Gauge("viapt_tasks", "Tasks loaded", registry=self.registry)
        self.passes = Gauge("viapt_passes", "Passes at the same time", registry=self.registry)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """All samples."""
        for family in self.registry.collect():
            if self.replica is not None:
                named = {"replica": self.replica}
                family.samples = [sample._replace(labels=sample.labels | named) for sample in family.samples]
            yield family
