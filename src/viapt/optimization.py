"""One optimizer step on one batch: in one process or several, in one part or several, to the same end."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from viapt.acceleration import replicated
from viapt.device import send
from viapt.distributed import exchange, process_count, shares, sharing, total
from viapt.errors import DivergenceError
from viapt.model import PromptedClassifier
from viapt.recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """Of one step, over the whole batch: mean loss, images classified right, and the learning rate."""

    loss: float
    correct: int
    lr: float


class Optimization:
    """A model and its optimizer."""

    def __init__(
        self, model: PromptedClassifier, recipe: Recipe, steps_per_epoch: int, accelerator: Accelerator
    ) -> None:
        self.model, self.recipe, self.steps_per_epoch, self.accelerator = model, recipe, steps_per_epoch, accelerator
        self.optimizer = recipe.build_optimizer(model)
        self.replica = replicated(model, accelerator.device)

    def step(
        self,
        number: int,
        size: int,
        images: Float[Tensor, "share ..."],
        labels: Int[Tensor, " share"],
    ) -> Outcome:
        """Optimizer step `number` (from 0), on a batch of `size` images of which this process has its share.

        Raises:
            DivergenceError: loss, gradients or weights are not finite, in all processes alike.
        """
        lr = self.recipe.lr_at(number, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        device = self.accelerator.device
        images, labels = send(images, device), send(labels, device).long()
        loss, correct, logits = self.gradients(number, size, images, labels)
        learnable = list(self.model.learnable().values())
        norm = nn.utils.get_total_norm([tensor.grad for tensor in learnable if tensor.grad is not None])
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            raise self.not_finite(number, lr, images, logits, loss)
        if self.recipe.clip is not None:
            nn.utils.clip_grads_with_norm_(learnable, self.recipe.clip, norm)
        self.optimizer.step()
        if not all(bool(tensor.isfinite().all()) for tensor in learnable):
            raise self.not_finite(number, lr, images, logits, loss)
        self.optimizer.zero_grad()
        return Outcome(loss, correct, lr)

    def gradients(
        self, number: int, size: int, images: Float[Tensor, "share ..."], labels: Int[Tensor, " share"]
    ) -> tuple[float, int, Float[Tensor, "share classes"]]:
        """Gradients of the mean loss over a batch; that loss, how many images are right, and this process's logits.

        Noise is drawn for the whole batch, so that an image's does not depend on who computes it.
        """
        noise = self.model.draw_noise(size, seed=self.recipe.seed, index=number)
        parts = shares(size, self.recipe.accumulate)
        lengths = [len(part.rows) for part in parts]
        losses, right, outcomes = [], [], []
        for part, some, targets in zip(parts, images.split(lengths), labels.split(lengths), strict=True):
            eps = noise[part.rows.start : part.rows.stop]
            # Processes exchange gradients once, at the last part, and take their mean: hence the factor.
            with sharing(part.counts), nullcontext() if part is parts[-1] else self.accelerator.no_sync(self.replica):
                loss, logits = self.replica(some, targets, noise=eps)
                (loss * (part.count * process_count() / size)).backward()
            losses.append(loss.detach() * part.count)
            right.append((logits.detach().argmax(1) == targets)[: part.count].sum())
            outcomes.append(logits.detach())
        loss_sum, correct = total(float(torch.stack(losses).sum()), float(torch.stack(right).sum()))
        return loss_sum / size, round(correct), torch.cat(outcomes)

    def not_finite(self, number: int, lr: float, images: Tensor, logits: Tensor, loss: float) -> DivergenceError:
        """What to say of a loss, gradient or weight that is not finite, in whichever process."""
        tensors = {"the images": images}
        tensors |= self.model.learnable()
        tensors |= {"the logits": logits, "the loss": torch.tensor(loss)}
        gradients = {name: p.grad for name, p in self.model.learnable().items() if p.grad is not None}
        tensors |= {f"the gradient of {name}": gradient for name, gradient in gradients.items()}
        bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        told = {name for names in exchange(json.dumps(bad).encode()) for name in json.loads(names)}
        bad = [name for name in tensors if name in told]
        self.optimizer.zero_grad()
        remedy = f"a lower learning rate than {self.recipe.lr:g}, a longer warm-up, clip=1.0, or precision float32"
        steps, epoch = self.recipe.epochs * self.steps_per_epoch, number // self.steps_per_epoch + 1
        return DivergenceError(
            f"Training stopped at step {number + 1} of {steps} (epoch {epoch}, learning rate {lr:g}): "
            f"not finite are {', '.join(bad[:6]) or 'the norm of all gradients'}; the loss is {loss:g}",
            expected="finite numbers",
            remedy="look for images with NaN or infinite pixels" if bad[:1] == ["the images"] else remedy,
        )
