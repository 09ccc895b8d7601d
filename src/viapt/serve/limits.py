"""What a server takes on at a time: everything that a client could make it hold is bounded here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from viapt.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """All numbers are above 0 (`wait`: 0 or above).

    Attributes:
        wait: seconds that a question waits for others to share its pass, at most.
        rows: of one pass through the backbone (a row is one round of one image for one task); None: as many as make
            it cheaper here (`viapt.serve.pace`). Larger requests are cut.
        passes: at the same time, which share torch's threads; None: one for each number of threads that a pass makes
            good use of here, likewise.
        queue: rows that are admitted and not yet answered; beyond them, or what can be computed within `timeout`,
            requests are told to come back (429).
        requests: that upload or wait at the same time; beyond them, others are turned away unread (503).
        request_bytes: of one request's body.
        images: in one request.
        pixels: of one image, by its header, before any of them is decoded.
        rounds: of the policy `multi`.
        upload: seconds until a request's body has arrived.
        timeout: seconds until its answer is there.
        tasks: that are loaded, until no more are at run time.
        photos: that a task is taught with, of all classes together.
        classes: of a task that is taught.
        epochs: of a fit.
        fit_seconds: that it may take.
        taught: tasks that the folder of taught ones may hold.

    Raises:
        ConfigError: a number out of range.
    """

    wait: float = 0.005
    rows: int | None = None
    passes: int | None = None
    queue: int = 512
    requests: int = 64
    request_bytes: int = 32 * 2**20
    images: int = 32
    pixels: int = 25_000_000
    rounds: int = 32
    upload: float = 20.0
    timeout: float = 30.0
    tasks: int = 1000
    photos: int = 400
    classes: int = 50
    epochs: int = 200
    fit_seconds: float = 3600.0
    taught: int = 200

    @property
    def drain(self) -> float:
        """Seconds in which every request that has begun is over: its upload, its answer, and some to send it."""
        return self.upload + self.timeout + 5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if not 0 <= value < float("inf") or (value == 0 and field.name != "wait"):
                raise ConfigError(f"The limit {field.name} is {value}", expected="a number above 0")
