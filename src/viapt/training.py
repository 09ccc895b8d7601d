"""Training: one plain loop, which ends with the same bits whether or not it is killed on the way.

Nothing random comes from a global generator: the order of images follows from (seed, epoch), the noise of instance
prompts from (seed, step), augmentation from the data set's own seed, epoch and index. So a checkpoint needs no
generator's state.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from jaxtyping import Float, Int
from torch import Tensor, nn

from viapt.checkpoint import Checkpoint, exclusive, load_checkpoint, remove_checkpoints, save_checkpoint
from viapt.errors import ConfigError, TrainingError
from viapt.evaluation import Evaluation, LabelledImages, check_dataset, evaluate, load, negative_log_likelihood, outputs
from viapt.history import Epoch, History, best_epoch, write_history
from viapt.inference import check_images, check_labels
from viapt.interruption import Interruption
from viapt.model import PromptedClassifier
from viapt.progress import TrainingDisplay
from viapt.recipe import EpochBatches, OptimizerName, Recipe, Selection
from viapt.training_state import Standing, check_same, identity, learned, pack, put, unpack

HISTORY, CHECKPOINTS, TENSORBOARD = "history.jsonl", "checkpoints", "tensorboard"


def fit(
    model: PromptedClassifier,
    train: LabelledImages,
    val: LabelledImages | None = None,
    *,
    test: LabelledImages | None = None,
    epochs: int = 10,
    lr: float | None = None,
    batch_size: int = 32,
    accumulate: int = 1,
    optimizer: OptimizerName = "adamw",
    weight_decay: float = 0.01,
    warmup_epochs: float | None = None,
    clip: float | None = None,
    selection: Selection = "last",
    seed: int = 0,
    checkpointing: bool = False,
    workers: int = 0,
    out: Path | str | None = None,
    checkpoint_seconds: float = 60.0,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> History:
    """Train method and head of `model` in place, and leave it in evaluation mode on the device that accelerate chose.

    That is a GPU if there is one; the environment variable ACCELERATE_USE_CPU=true says otherwise. The backbone
    computes in the precision that its weights have; what is trained stays in its own.

    With `out`, the same call takes an interrupted training up where it was, and ends with the same weights, bit by bit
    (on the same machine, as far as the device's kernels are deterministic; those of CPUs are). A finished one is
    loaded. Ctrl-C and SIGTERM finish the step and save first; a second one acts at once.

    Args:
        train: map-style, of (preprocessed float image (3, height, width), class index). Random items must be a function
            of index and epoch: `train.set_epoch(epoch)` is called before each epoch, where there is such a method.
        val: likewise; measured after every epoch with the policy `mean`.
        test: likewise; read once, after training.
        epochs: >= 1.
        lr: highest learning rate; by default the method's own for AdamW. SGD has no default.
        batch_size: images in an optimizer step.
        accumulate: in how many parts a batch goes through the model: less memory, the same gradients but for rounding.
            (A method that takes statistics of batches, such as ViaPT's reduction `running`, takes them of the parts.)
        optimizer: "adamw", or "sgd" with momentum 0.9.
        weight_decay: of matrices (prompts, convolutions, head); biases and scales do not decay.
        warmup_epochs: epochs of linear warm-up, before the cosine; by default a tenth of all.
        clip: largest gradient norm; None leaves gradients as they are.
        selection: which weights to end with: of the last epoch, or of the first with the highest validation accuracy.
        seed: of the order of images and of the noise.
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, more time.
        workers: processes that load data.
        out: folder for `history.jsonl`, checkpoints and TensorBoard files.
        checkpoint_seconds: a checkpoint is written after every epoch, and this many seconds after the last one.
        overwrite: forget an earlier training in `out`.
        config: JSON values that must be equal, too, for a training to be resumed.
        tensorboard: write TensorBoard files.
        progress: show a live bar on a terminal, a line per epoch elsewhere.

    Raises:
        ConfigError: an argument out of range, or without effect.
        DataError: images or labels that do not fit the model.
        TrainingError: loss, gradients or weights are not finite; `out` holds another
            training, or is in use.
        ArtifactError: no checkpoint in `out` can be read.
        KeyboardInterrupt: after Ctrl-C.
    """
    if optimizer == "sgd" and lr is None:
        raise ConfigError("lr is not given", expected="a learning rate for sgd; the method's own is one for adamw")
    if selection == "best-val" and val is None:
        raise ConfigError("selection = 'best-val' without validation data", expected="validation data, or 'last'")
    if out is None and (overwrite or tensorboard):
        raise ConfigError(f"{'overwrite' if overwrite else 'tensorboard'} without out", expected="out, a folder")
    recipe = Recipe(
        epochs=epochs,
        lr=model.method.learning_rate if lr is None else lr,
        batch_size=batch_size,
        accumulate=accumulate,
        optimizer=optimizer,
        weight_decay=weight_decay,
        warmup_epochs=epochs / 10 if warmup_epochs is None else warmup_epochs,
        clip=clip,
        selection=selection,
        seed=seed,
    )
    for dataset, name in ((train, "training data"), (val, "validation data"), (test, "test data")):
        if dataset is not None:
            check_dataset(model, dataset, name)
    folder = None if out is None else Path(out)
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(exclusive(folder / CHECKPOINTS))
            if overwrite:
                forget(folder)
        stack.callback(setattr, model, "checkpointing", model.checkpointing)
        model.checkpointing = model.checkpointing or checkpointing
        interruption = stack.enter_context(Interruption())
        accelerator = accelerated(folder if tensorboard else None)
        run = Training(model, train, val, recipe, accelerator, interruption, folder, checkpoint_seconds, workers)
        resumed = run.resume(identity(model, recipe, train, val, config or {}))
        stack.enter_context(tracked(accelerator, resumed))
        display = stack.enter_context(TrainingDisplay(epochs, len(train), run.images_done, shown=progress))
        if resumed:
            display.say(f"{folder}: resuming after step {resumed} of {run.steps}")
        run.loop(display)
        run.select()
        result = None
        if test is not None:
            stop = interruption.check
            result = evaluate(model, test, batch_size=batch_size, workers=workers, progress=lambda _: stop())
    return run.history(resumed, result)


class Training:
    """A model on its way through a recipe."""

    def __init__(
        self,
        model: PromptedClassifier,
        train: LabelledImages,
        val: LabelledImages | None,
        recipe: Recipe,
        accelerator: Accelerator,
        interruption: Interruption,
        folder: Path | None,
        checkpoint_seconds: float,
        workers: int,
    ) -> None:
        self.model, self.train, self.val, self.recipe = model, train, val, recipe
        self.accelerator, self.interruption = accelerator, interruption
        self.folder, self.checkpoint_seconds, self.workers = folder, checkpoint_seconds, workers
        self.batches = EpochBatches(len(train), recipe.batch_size, recipe.seed)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.steps = recipe.epochs * self.steps_per_epoch
        self.plain_optimizer = recipe.build_optimizer(model)
        loader = load(train, workers, batch_sampler=self.batches)
        self.prepared, self.optimizer, self.loader = accelerator.prepare(model, self.plain_optimizer, loader)
        self.standing, self.identity, self.best = Standing(), {}, {}
        self.saved_at = self.counted_at = time.monotonic()

    def loop(self, display: TrainingDisplay) -> None:
        """All that is left of the training."""
        standing = self.standing
        for epoch in range(len(standing.epochs), self.recipe.epochs):
            self.model.train()
            self.batches.start = standing.step - epoch * self.steps_per_epoch
            self.loader.set_epoch(epoch)  # of the order, and of the augmentation
            for images, labels in self.loader:
                check_images(self.model, images)
                check_labels(len(self.model.classes), labels)
                self.step(images, labels)
                display.step(epoch + 1, labels.shape[0], standing.loss_sum / standing.seen)
                self.breathe()
            display.epoch(self.close_epoch())

    def step(self, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"]) -> None:
        """One optimizer step."""
        standing, recipe, labels = self.standing, self.recipe, labels.long()
        lr = recipe.lr_at(standing.step, self.steps_per_epoch)
        for group in self.plain_optimizer.param_groups:
            group["lr"] = lr
        noise = self.model.draw_noise(labels.shape[0], seed=recipe.seed, index=standing.step)
        parts = [tensor.chunk(recipe.accumulate) for tensor in (images, labels, noise)]
        loss, logits = self.gradients(list(zip(*parts, strict=True)))
        learnable = list(self.model.learnable().values())
        norm = nn.utils.get_total_norm([tensor.grad for tensor in learnable if tensor.grad is not None])
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            raise self.not_finite(lr, images, logits, loss)
        if recipe.clip is not None:
            nn.utils.clip_grads_with_norm_(learnable, recipe.clip, norm)
        self.optimizer.step()
        if not all(bool(tensor.isfinite().all()) for tensor in learnable):
            raise self.not_finite(lr, images, logits, loss)
        self.optimizer.zero_grad()
        standing.step += 1
        standing.seen += labels.shape[0]
        standing.loss_sum += loss * labels.shape[0]
        standing.correct += int((logits.argmax(1) == labels).sum())
        self.accelerator.log({"train/loss": loss, "train/lr": lr}, standing.step)

    def gradients(self, parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, Float[Tensor, "batch classes"]]:
        """Gradients of the mean loss over all parts of a batch; that loss, and the logits."""
        total, losses, outcomes = sum(labels.shape[0] for _, labels, _ in parts), [], []
        for number, (images, labels, noise) in enumerate(parts, start=1):
            # Where several processes train, they exchange gradients once, at the last part.
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.prepared):
                loss, logits = self.prepared(images, labels, noise=noise)
                loss = loss * (labels.shape[0] / total)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            outcomes.append(logits.detach())
        return float(torch.stack(losses).sum()), torch.cat(outcomes)

    def not_finite(self, lr: float, images: Tensor, logits: Tensor, loss: float) -> TrainingError:
        """What to say of a loss, gradient or weight that is not finite."""
        tensors = {"the images": images}
        tensors |= self.model.learnable()
        tensors |= {"the logits": logits, "the loss": torch.tensor(loss)}
        gradients = {name: p.grad for name, p in self.model.learnable().items() if p.grad is not None}
        tensors |= {f"the gradient of {name}": gradient for name, gradient in gradients.items()}
        bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        self.optimizer.zero_grad()
        remedy = f"a lower learning rate than {self.recipe.lr:g}, a longer warm-up, clip=1.0, or precision float32"
        step, epoch = self.standing.step + 1, self.standing.step // self.steps_per_epoch + 1
        return TrainingError(
            f"Training stopped at step {step} of {self.steps} (epoch {epoch}, learning rate {lr:g}): "
            f"not finite are {', '.join(bad[:6]) or 'the norm of all gradients'}; the loss is {loss:g}",
            expected="finite numbers",
            remedy="look for images with NaN or infinite pixels" if bad[:1] == ["the images"] else remedy,
        )

    def close_epoch(self) -> Epoch:
        """Validate, write down, start anew."""
        standing, val_loss, val_accuracy = self.standing, None, None
        if self.val is not None:
            probabilities, labels = outputs(
                self.model,
                self.val,
                batch_size=self.recipe.batch_size,
                workers=self.workers,
                progress=lambda _: self.breathe(),
            )
            val_loss = negative_log_likelihood(probabilities, labels)
            val_accuracy = float((probabilities.argmax(1) == labels).double().mean())
            self.accelerator.log({"val/loss": val_loss, "val/accuracy": val_accuracy}, standing.step)
        self.count_time()
        epoch = Epoch(
            epoch=len(standing.epochs) + 1,
            step=standing.step,
            lr=self.recipe.lr_at(standing.step - 1, self.steps_per_epoch),
            train_loss=standing.loss_sum / standing.seen,
            train_accuracy=standing.correct / standing.seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=standing.seconds,
        )
        standing.epochs.append(epoch)
        standing.seen, standing.loss_sum, standing.correct = 0, 0.0, 0
        if self.recipe.selection == "best-val" and best_epoch(standing.epochs) == epoch.epoch:
            self.best = {name: tensor.detach().clone() for name, tensor in learned(self.model).items()}
        self.save()
        if self.folder is not None:
            write_history(self.folder / HISTORY, standing.epochs)
        return epoch

    def select(self) -> None:
        """End with the weights that the recipe selects, in evaluation mode."""
        if self.best:
            put(self.model, self.best)
        self.model.eval()

    def breathe(self) -> None:
        """Between two batches: save when it is time or somebody wants to stop, and then stop."""
        if self.interruption.signal is not None or time.monotonic() - self.saved_at >= self.checkpoint_seconds:
            self.save()
        self.interruption.check()

    def count_time(self) -> None:
        """Bring `standing.seconds` up to date."""
        now = time.monotonic()
        self.standing.seconds += now - self.counted_at
        self.counted_at = now

    def save(self) -> None:
        """Write a checkpoint."""
        self.count_time()
        if self.folder is None:
            return
        tensors = pack(self.model, self.plain_optimizer, self.best)
        state = {"identity": self.identity, "standing": asdict(self.standing)}
        save_checkpoint(self.folder / CHECKPOINTS, Checkpoint(state, tensors))
        self.saved_at = time.monotonic()

    def resume(self, identity: dict[str, Any]) -> int:
        """Take up what the folder holds; the step where it stood, 0 if there is nothing.

        Raises:
            TrainingError: it holds another training, or one that is finished and cleared away.
            ArtifactError: none of its checkpoints can be read.
        """
        self.identity = identity
        if self.folder is None:
            return 0
        checkpoint = load_checkpoint(self.folder / CHECKPOINTS)
        if checkpoint is None:
            if (self.folder / HISTORY).exists():  # only ever written beside a checkpoint
                found = f"{self.folder} holds a finished training"
                raise TrainingError(found, remedy="choose another folder, or overwrite")
            return 0
        check_same(self.folder, checkpoint.state["identity"], identity)
        self.standing = Standing.from_dict(checkpoint.state["standing"])
        self.best = unpack(checkpoint.tensors, self.model, self.plain_optimizer)
        write_history(self.folder / HISTORY, self.standing.epochs)
        return self.standing.step

    @property
    def images_done(self) -> int:
        """Images trained on so far, an image counted once an epoch."""
        return len(self.standing.epochs) * len(self.train) + self.standing.seen

    def history(self, resumed: int, test: Evaluation | None) -> History:
        """What happened."""
        epochs, recipe = self.standing.epochs, self.recipe
        best = best_epoch(epochs) if recipe.selection == "best-val" else None
        return History(
            epochs=list(epochs),
            protocol=recipe.to_dict() | {key: self.identity[key] for key in ("precision", "train", "val")},
            selected_epoch=best or recipe.epochs,
            learnable_parameters=sum(tensor.numel() for tensor in self.model.learnable().values()),
            seconds=self.standing.seconds,
            resumed_step=resumed,
            test=test,
            data_hash=self.identity["train"]["hash"],
        )


def accelerated(tensorboard: Path | None) -> Accelerator:
    """accelerate for one process, without autocast: the frozen backbone computes in its own precision.

    Raises:
        ConfigError: TensorBoard is wanted and not installed.
        TrainingError: several processes were launched.
    """
    if tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed", remedy="pip install 'viapt[tensorboard]'")
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=None if tensorboard is None else "tensorboard",
        project_config=None if tensorboard is None else ProjectConfiguration(logging_dir=str(tensorboard)),
    )
    if accelerator.num_processes > 1:
        raise TrainingError(
            f"{accelerator.num_processes} processes were launched", expected="one: run it without torchrun"
        )
    return accelerator


@contextmanager
def tracked(accelerator: Accelerator, step: int) -> Iterator[None]:
    """Trackers from this step on; what they recorded beyond it before an interruption is dropped."""
    accelerator.init_trackers(TENSORBOARD, init_kwargs={"tensorboard": {"purge_step": step + 1}})
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def discard_checkpoints(out: Path | str) -> None:
    """Remove the checkpoints of a finished training, once what was learned is saved."""
    folder = Path(out) / CHECKPOINTS
    with exclusive(folder):
        remove_checkpoints(folder)
    shutil.rmtree(folder)


def forget(folder: Path) -> None:
    """Remove all that `fit` ever wrote to a folder."""
    remove_checkpoints(folder / CHECKPOINTS)
    (folder / HISTORY).unlink(missing_ok=True)
    shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
