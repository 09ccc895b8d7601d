"""Training: one plain loop, which ends with the same bits whether or not it is killed on the way.

Nothing random comes from a global generator: the order of images follows from (seed, epoch), the noise of instance
prompts from (seed, step), augmentation from the data set's own seed, epoch and index. So a checkpoint needs no
generator's state.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from viapt.acceleration import TENSORBOARD, Trackers, accelerated, tracked
from viapt.caching import Cache, cached
from viapt.checkpoint import Checkpoint, exclusive, load_checkpoint, remove_checkpoints, save_checkpoint, shared
from viapt.device import prepare_process
from viapt.distributed import SharedBatches, agree, companions, is_main, maximum, process_count
from viapt.errors import ConfigError, TrainingError
from viapt.evaluation import Evaluation, LabelledImages, check_dataset, evaluate, load, negative_log_likelihood, outputs
from viapt.history import Epoch, History, best_epoch, write_history
from viapt.inference import check_images, check_labels
from viapt.initialisation import begin
from viapt.interruption import Interruption
from viapt.model import PromptedClassifier
from viapt.optimization import Optimization
from viapt.progress import TrainingDisplay
from viapt.recipe import EpochBatches, OptimizerName, Recipe, Selection, check_trainable, enter_epoch
from viapt.round_calibration import calibrate_if_sampled
from viapt.training_state import Standing, check_everywhere, check_same, identity, learned, pack, put, unpack

HISTORY, CHECKPOINTS = "history.jsonl", "checkpoints"
PROTOCOL = "precision", "train", "val", "cached", "compiled"  # of what identifies a training, besides the recipe


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
    compile: bool = False,
    workers: int = 0,
    cache: Cache | None = "auto",
    out: Path | str | None = None,
    checkpoint_seconds: float = 60.0,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
    log_with: Trackers = (),
    progress: bool = True,
) -> History:
    """Train method and head of `model` in place, and leave it in evaluation mode on the device that accelerate chose.

    That is a GPU if there is one; the environment variable ACCELERATE_USE_CPU=true says otherwise. The backbone
    computes in the precision that its weights have; what is trained stays in its own.

    With `out`, the same call takes an interrupted training up where it was, and ends with the same weights, bit by bit
    (where kernels are deterministic: on CPUs they are). A finished one is loaded. Ctrl-C and SIGTERM finish the step
    and save first; a second one acts at once.

    Launched in several processes (`accelerate launch`), with the same arguments in each, all train together: the same
    images in each step, so the same weights, but for rounding, as one process. Their number may change when a training
    is resumed. The main process alone writes to `out` and shows progress; each returns the same history, and ends with
    the same weights. What fails in one is raised in all.

    A method may start from the first images of `train` (`viapt.initialisation`), which then are read once more.

    At the end `viapt.calibrate_rounds` measures how far rounds differ: on validation images, if there are any.

    Args:
        train: map-style, of (preprocessed float image (3, height, width), class index). Random items must be a function
            of index and epoch: `train.set_epoch(epoch)` is called before each epoch, where there is such a method.
        val: likewise; measured after every epoch with the policy `mean`.
        test: likewise; read once, after training.
        epochs: >= 1.
        lr: highest learning rate; by default the method's own for AdamW. SGD has no default.
        batch_size: images in an optimizer step, over all processes: each of P takes batch_size / P of them.
        accumulate: in how many parts a batch goes through the model: less memory, the same gradients but for rounding.
            (A method that takes statistics of batches, such as ViaPT's reduction `running`, takes them of the parts.)
        optimizer: "adamw", or "sgd" with momentum 0.9.
        weight_decay: of matrices (prompts, convolutions, head); biases and scales do not decay.
        warmup_epochs: epochs of linear warm-up, before the cosine; by default a tenth of all.
        clip: largest gradient norm; None leaves gradients as they are.
        selection: which weights to end with: of the last epoch, or of the first with the highest validation accuracy.
        seed: of the order of images and of the noise.
        checkpointing: recompute activations in the backward pass instead of storing them: less memory, more time.
        compile: run blocks as kernels that `torch.compile` makes in the first steps, and no longer when `fit` returns;
            see `Backbone.compile_blocks`. They round in their own way: a training is resumed as it began.
        workers: processes that load data.
        cache: embed every image once, not in every epoch, where there is no augmentation: in "memory", or on "disk" for
            other runs, too. "auto": features in memory where a method has no prompts and `train.augmented` is False.
        out: folder for `history.jsonl`, checkpoints and TensorBoard files.
        checkpoint_seconds: a checkpoint is written after every epoch, and this many seconds after the last one.
        overwrite: forget an earlier training in `out`.
        config: JSON values that must be equal, too, for a training to be resumed.
        tensorboard: write TensorBoard files.
        log_with: "wandb", "mlflow" or trackers of accelerate, one or several, to log to as well: docs/ecosystem.md.
        progress: show a live bar on a terminal, a line per epoch elsewhere.

    Raises:
        ConfigError: an argument out of range, or without effect; nothing to compile with.
        BackboneError: a backbone that does not compile its blocks.
        DataError: images or labels that do not fit the model.
        DivergenceError: loss, gradients or weights are not finite.
        TrainingError: `out` holds another training, or is in use.
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
    check_trainable(model)
    for dataset, name in ((train, "training data"), (val, "validation data"), (test, "test data")):
        if dataset is not None:
            check_dataset(model, dataset, name)
    folder = None if out is None else Path(out)
    with ExitStack() as stack:
        accelerator = accelerated(folder if tensorboard else None, log_with)
        if accelerator.num_processes > batch_size:
            raise ConfigError(
                f"batch_size = {batch_size} over {accelerator.num_processes} processes", expected="an image for each"
            )
        stack.enter_context(companions())
        with agree():
            if folder is not None and is_main():
                stack.enter_context(exclusive(folder / CHECKPOINTS))
                if overwrite:
                    forget(folder)
        stack.callback(setattr, model, "checkpointing", model.checkpointing)
        model.checkpointing = model.checkpointing or checkpointing
        interruption = stack.enter_context(Interruption())
        prepare_process(accelerator.device)
        model.to(accelerator.device)
        if compile and not model.backbone.compiled:
            with agree():
                model.backbone.compile_blocks()
            stack.callback(model.backbone.compile_blocks, False)
        with cached(model, train, val, cache, workers=workers, heed=interruption.heed) as (inputs, checks):
            run = Training(
                model, inputs, checks, recipe, accelerator, interruption, folder, checkpoint_seconds, workers
            )
            resumed = run.resume(identity(model, recipe, train, val, config or {}, cached=inputs is not train))
            stack.enter_context(tracked(accelerator, resumed, recipe.to_dict()))
            shown = progress and is_main()
            display = stack.enter_context(TrainingDisplay(epochs, len(train), run.images_done, shown=shown))
            if resumed:
                display.say(f"{folder}: resuming after step {resumed} of {run.steps}")
            run.loop(display)
            run.select()
        heed, result = run.heed, None
        with agree():
            calibrate_if_sampled(model, [val, train], seed=seed, batch_size=batch_size)
        if test is not None:
            result = evaluate(
                model, test, batch_size=batch_size, workers=workers, progress=lambda _: heed(), shared=True
            )
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
        self.optimization = Optimization(model, recipe, self.steps_per_epoch, accelerator)
        batches = SharedBatches(self.batches, recipe.accumulate)
        self.loader = load(train, workers, accelerator.device, batch_sampler=batches)
        self.standing, self.identity, self.best = Standing(), {}, {}
        self.saved_at = self.counted_at = time.monotonic()

    def loop(self, display: TrainingDisplay) -> None:
        """All that is left of the training."""
        for epoch in range(len(self.standing.epochs), self.recipe.epochs):
            self.model.train()
            self.begin_epoch(epoch)
            loader = iter(self.loader)
            for number in range(self.batches.start, self.steps_per_epoch):
                with agree():
                    images, labels = next(loader)
                    check_images(self.model, images)
                    check_labels(len(self.model.classes), labels)
                size = self.batches.size(number)
                self.step(size, images, labels)
                display.step(epoch + 1, size, self.standing.loss_sum / self.standing.seen)
                self.breathe()
            display.epoch(self.close_epoch())

    def begin_epoch(self, epoch: int) -> None:
        """Choose order and augmentation, and leave out the batches that were done before."""
        enter_epoch(self.batches, self.train, epoch)
        self.batches.start = self.standing.step - epoch * self.steps_per_epoch

    def step(self, size: int, images: Float[Tensor, "share ..."], labels: Int[Tensor, " share"]) -> None:
        """One optimizer step, written down."""
        standing = self.standing
        outcome = self.optimization.step(standing.step, size, images, labels)
        standing.step += 1
        standing.seen += size
        standing.loss_sum += outcome.loss * size
        standing.correct += outcome.correct
        self.accelerator.log({"train/loss": outcome.loss, "train/lr": outcome.lr}, standing.step)

    def close_epoch(self) -> Epoch:
        """Validate, write down, start anew."""
        standing, val_loss, val_accuracy = self.standing, None, None
        if self.val is not None:
            options: dict[str, Any] = {"batch_size": self.recipe.batch_size, "workers": self.workers, "shared": True}
            probabilities, labels, _ = outputs(self.model, self.val, progress=lambda _: self.breathe(), **options)
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
        self.write_history()
        return epoch

    def select(self) -> None:
        """End with the weights that the recipe selects, in evaluation mode."""
        if self.best:
            put(self.model, self.best)
        self.model.eval()

    def breathe(self) -> None:
        """Between two batches: save when it is time or somebody wants to stop, and then stop; all processes alike."""
        due = time.monotonic() - self.saved_at >= self.checkpoint_seconds
        signal, due = maximum(self.interruption.signal or 0, due)
        if signal or due:
            self.save()
        if signal:
            self.interruption.stop(int(signal))

    def heed(self) -> None:
        """Stop if somebody wants to, where there is nothing to save."""
        (signal,) = maximum(self.interruption.signal or 0)
        if signal:
            self.interruption.stop(int(signal))

    def count_time(self) -> None:
        """Bring `standing.seconds` up to date."""
        now = time.monotonic()
        self.standing.seconds += now - self.counted_at
        self.counted_at = now

    def save(self) -> None:
        """Write a checkpoint."""
        self.count_time()
        with agree():
            if self.folder is not None and is_main():
                save_checkpoint(self.folder / CHECKPOINTS, self.checkpoint())
        self.saved_at = time.monotonic()

    def checkpoint(self) -> Checkpoint:
        """All that is needed to go on from here, with any number of processes."""
        tensors = pack(self.model, self.optimization.optimizer, self.best)
        return Checkpoint({"identity": self.identity, "standing": asdict(self.standing)}, tensors)

    def write_history(self) -> None:
        """Bring `history.jsonl` up to date."""
        with agree():
            if self.folder is not None and is_main():
                write_history(self.folder / HISTORY, self.standing.epochs)

    def resume(self, identity: dict[str, Any]) -> int:
        """Take up what the folder holds; the step where it stood, 0 if there is nothing.

        All processes start with what the main one found, or has.

        Raises:
            TrainingError: it holds another training, or one that is finished and cleared away; processes that train
                different things.
            ArtifactError: none of its checkpoints can be read.
        """
        self.identity = identity
        check_everywhere(identity)
        with agree():
            found = self.stored() if is_main() else None
            if found is None and is_main():
                begin(self.model, self.train, self.recipe)
        (resuming,) = maximum(found is not None)
        if resuming or process_count() > 1:
            checkpoint = shared(found or self.checkpoint())
            self.standing = Standing.from_dict(checkpoint.state["standing"])
            self.best = unpack(checkpoint.tensors, self.model, self.optimization.optimizer)
        if resuming:
            self.write_history()
        return self.standing.step

    def stored(self) -> Checkpoint | None:
        """The newest checkpoint of this training; None if there is none yet."""
        if self.folder is None:
            return None
        checkpoint = load_checkpoint(self.folder / CHECKPOINTS)
        if checkpoint is not None:
            check_same(self.folder, checkpoint.state["identity"], self.identity)
        elif (self.folder / HISTORY).exists():  # only ever written beside a checkpoint
            found = f"{self.folder} holds a finished training"
            raise TrainingError(found, remedy="choose another folder, or overwrite")
        return checkpoint

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
            protocol=recipe.to_dict() | {key: self.identity[key] for key in PROTOCOL if key in self.identity},
            selected_epoch=best or recipe.epochs,
            learnable_parameters=sum(tensor.numel() for tensor in self.model.learnable().values()),
            seconds=self.standing.seconds,
            resumed_step=resumed,
            test=test,
            data_hash=self.identity["train"]["hash"],
        )


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
