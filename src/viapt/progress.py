"""What a training shows while it runs: a live bar on a terminal, a line per epoch elsewhere; and TensorBoard files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from viapt.history import Epoch

TENSORBOARD = "tensorboard"


class TrainingDisplay:
    """Shows epoch, throughput, time left, loss and validation accuracy, on standard error.

    Args:
        epochs: of the training.
        images: of an epoch.
        done: images trained on before (a resumed training).
        shown: False for silence.
        console: where to; standard error by default.
    """

    def __init__(self, epochs: int, images: int, done: int, *, shown: bool, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.shown, self.epochs = shown, epochs
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(bar_width=None),
            Throughput(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("val {task.fields[val]}"),
            console=self.console,
            disable=not shown or not self.console.is_terminal,
        )
        self.task = self.bar.add_task(
            "", total=epochs * images, completed=done, epoch=min(epochs, done // images + 1), loss="-", val="-"
        )

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.shown:
            self.console.print(text, markup=False, soft_wrap=True)

    def step(self, epoch: int, images: int, loss: float) -> None:
        """After an optimizer step: `epoch` from 1, images in the step, mean loss of the epoch so far."""
        self.bar.update(self.task, advance=images, epoch=epoch, loss=f"{loss:.4f}")

    def epoch(self, record: Epoch) -> None:
        """After an epoch."""
        val = "-" if record.val_accuracy is None else f"{record.val_accuracy:.4f}"
        self.bar.update(self.task, val=val)
        if not self.console.is_terminal:
            accuracy = f"loss {record.train_loss:.4f}  accuracy {record.train_accuracy:.4f}"
            self.say(f"epoch {record.epoch}/{self.epochs}  {accuracy}  val {val}  {record.seconds:.1f} s")


class Throughput(ProgressColumn):
    """Images per second, validation included."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "- images/s")


@contextmanager
def tracked(accelerator: Accelerator, step: int) -> Iterator[None]:
    """Trackers from this step on; what they recorded beyond it before an interruption is dropped."""
    accelerator.init_trackers(TENSORBOARD, init_kwargs={"tensorboard": {"purge_step": step + 1}})
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
