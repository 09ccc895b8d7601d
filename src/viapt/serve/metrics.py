"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
