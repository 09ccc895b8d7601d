"""The training loop against a plain one; selection, failures, and what is reported."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from training_cases import Augmented, learned_bits, quiet, tiny_data, tiny_images, tiny_model
from viapt import training
from viapt.errors import ConfigError, DataError, TrainingError
from viapt.history import Epoch
from viapt.inference import predict
from viapt.model import PromptedClassifier
from viapt.progress import TrainingDisplay
from viapt.training import fit

# The loop


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("method", ["viapt", "vpt-deep"])
def test_fit_is_the_plain_loop(method: str, optimizer: Any) -> None:
    model, data = tiny_model(method), tiny_data()
    plain = copy.deepcopy(model)
    history = quiet(model, data, optimizer=optimizer, lr=0.05, weight_decay=0.1, warmup_epochs=1.0, clip=0.5, seed=3)

    images, labels = data.tensors
    matrices = [tensor for tensor in plain.learnable().values() if tensor.ndim >= 2]
    vectors = [tensor for tensor in plain.learnable().values() if tensor.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    stepper = torch.optim.AdamW(groups) if optimizer == "adamw" else torch.optim.SGD(groups, momentum=0.9)
    plain.train()
    losses = []
    for step in range(6):
        epoch, part = divmod(step, 3)
        order = np.random.Generator(np.random.PCG64([3, epoch])).permutation(20)[8 * part : 8 * part + 8]
        lr = 0.05 * (step + 1) / 3 if step < 3 else 0.05 * (1 + math.cos(math.pi * (step - 3) / 3)) / 2
        loss, _ = plain(images[order], labels[order], noise=plain.draw_noise(len(order), seed=3, index=step))
        stepper.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.learnable().values(), 0.5)
        for group in stepper.param_groups:
            group["lr"] = lr
        stepper.step()
        losses.append(loss.item() * len(order))
    assert learned_bits(model) == learned_bits(plain)
    assert [epoch.train_loss for epoch in history.epochs] == pytest.approx([sum(losses[:3]) / 20, sum(losses[3:]) / 20])


def test_everything_learnable_moves_and_the_backbone_does_not() -> None:
    model = tiny_model(learn_carry_scale=True)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    quiet(model, tiny_data(), tiny_data(9))
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name]), name
        elif name in model.learnable():
            assert not torch.equal(tensor, before[name]), name
    assert not model.training
    assert all(not tensor.requires_grad for tensor in model.backbone.parameters())


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate: int) -> None:
    models = [tiny_model(reduction="random", calibrate_carry=False, kl_weight=0.1).double() for _ in range(2)]
    images, labels = tiny_data().tensors
    data = TensorDataset(images.double(), labels)
    histories = [quiet(model, data, accumulate=parts) for model, parts in zip(models, (1, accumulate), strict=True)]
    for name, tensor in models[0].learnable().items():
        torch.testing.assert_close(tensor, models[1].learnable()[name], rtol=1e-9, atol=1e-11)
    losses = [[epoch.train_loss for epoch in history.epochs] for history in histories]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_activation_checkpointing_changes_no_gradient_and_ends_with_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tiny_model(), tiny_model()]
    quiet(models[0], tiny_data())
    used: list[bool] = []
    advance = PromptedClassifier.advance

    def watched(self: PromptedClassifier, *args: Any) -> Tensor:
        used.append(self.checkpointing)
        return advance(self, *args)

    monkeypatch.setattr(PromptedClassifier, "advance", watched)
    quiet(models[1], tiny_data(), checkpointing=True)
    assert used and all(used)
    assert models[1].checkpointing is False
    for name, tensor in models[0].learnable().items():
        torch.testing.assert_close(tensor, models[1].learnable()[name])


def test_same_seed_same_bits_whatever_the_workers_and_the_global_generators() -> None:
    bits = []
    for setting, arguments in enumerate(({}, {"workers": 2}, {"seed": 1})):
        torch.manual_seed(setting)
        model = tiny_model()
        quiet(model, Augmented(tiny_data()), tiny_data(9), **arguments)
        bits.append(learned_bits(model))
    assert bits[0] == bits[1] != bits[2]


def test_no_global_generator_is_touched() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    quiet(tiny_model(), tiny_data(), tiny_data(9), test=tiny_data(9))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()


def test_the_data_set_is_told_the_epoch() -> None:
    data = Augmented(tiny_data())
    quiet(tiny_model("linear"), data, epochs=3)
    assert list(dict.fromkeys(data.epochs)) == [0, 1, 2]


def test_a_backbone_in_bfloat16_trains_prompts_in_float32() -> None:
    model = tiny_model().to_precision(torch.bfloat16)
    history = quiet(model, tiny_data(), tiny_data(9))
    assert history.protocol["precision"] == "bfloat16"
    assert {tensor.dtype for tensor in model.learnable().values()} == {torch.float32}
    assert all(math.isfinite(epoch.train_loss) for epoch in history.epochs)


def test_it_learns() -> None:
    model = tiny_model("viapt", classes=2)
    history = quiet(model, tiny_data(32, classes=2), epochs=15, lr=0.02)
    assert history.epochs[-1].train_loss < 0.3 < 0.6 < history.epochs[0].train_loss
    assert history.epochs[-1].train_accuracy > 0.9


# Selection, validation, test


def weights_by_epoch(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[dict[str, bytes]]:
    """Make validation report these accuracies, and record the weights that it saw."""
    seen: list[dict[str, bytes]] = []

    def outputs(model: PromptedClassifier, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        right = round(10 * accuracies[len(seen)])
        seen.append(learned_bits(model))
        probabilities = torch.eye(3)[torch.tensor([0] * right + [1] * (10 - right))]
        return probabilities, torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.long)

    monkeypatch.setattr(training, "outputs", outputs)
    return seen


@pytest.mark.parametrize(("selection", "epoch"), [("last", 4), ("best-val", 2)])
def test_selection(selection: Any, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = weights_by_epoch(monkeypatch, [0.2, 0.8, 0.5, 0.8])
    model = tiny_model()
    history = quiet(model, tiny_data(), tiny_data(10), epochs=4, selection=selection)
    assert history.selected_epoch == epoch
    assert history.best_epoch == 2
    assert history.val_accuracy == 0.8
    assert learned_bits(model) == seen[epoch - 1]
    assert len({bits["head.bias"] for bits in seen}) == 4


def test_validation_is_what_predict_says() -> None:
    model, val = tiny_model(), tiny_data(11, seed=1)
    history = quiet(model, tiny_data(), val)
    result = predict(model, val.tensors[0])
    right = [label == f"class {index}" for label, index in zip(result.labels, val.tensors[1].tolist(), strict=True)]
    assert history.val_accuracy == pytest.approx(sum(right) / 11)
    log = result.probabilities.log().gather(1, val.tensors[1][:, None])
    assert history.epochs[-1].val_loss == pytest.approx(-log.mean().item(), rel=1e-5)


class Counting(Augmented):
    """Writes down who reads what, and when."""

    def __init__(self, data: TensorDataset, name: str, log: list[tuple[str, int]]) -> None:
        super().__init__(data)
        self.name, self.log = name, log
        self.epochs.append(0)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.log.append((self.name, index))
        return super().__getitem__(index)


def test_test_data_are_read_once_after_training() -> None:
    log: list[tuple[str, int]] = []
    train, val, test = (Counting(tiny_data(9), name, log) for name in ("train", "val", "test"))
    history = quiet(tiny_model(), train, val, test=test, selection="best-val")
    assert log[-9:] == [("test", index) for index in range(9)]
    assert "test" not in [name for name, _ in log[:-9]]
    assert history.test is not None and history.test.count == 9
    assert history.test_accuracy == history.test.accuracy.value


# What goes wrong


def test_a_bad_image_is_the_cause_and_the_weights_stay(tmp_path: Path) -> None:
    data = tiny_data(24)
    data.tensors[0][17] = math.nan
    model = tiny_model()
    with pytest.raises(TrainingError) as error:
        quiet(model, data, out=tmp_path, checkpoint_seconds=0.0)
    assert "the images" in error.value.found and "epoch 1" in error.value.found
    assert "images with NaN" in error.value.remedy
    assert all(bool(tensor.isfinite().all()) for tensor in model.learnable().values())


def test_too_high_a_learning_rate_is_the_cause(tmp_path: Path) -> None:
    model = tiny_model("vpt-deep")
    with pytest.raises(TrainingError, match=r"step \d+ of 20 \(epoch \d+, learning rate .*not finite are") as error:
        quiet(model, tiny_data(8), optimizer="sgd", lr=1e38, epochs=20, warmup_epochs=0.0, out=tmp_path)
    assert "lower learning rate than 1e+38" in error.value.remedy
    for path in (tmp_path / "checkpoints").glob("*/state.json"):
        assert json.loads(path.read_text())["state"]["standing"]["step"] < 20


def test_a_gradient_that_is_not_finite_is_named_and_the_weights_stay() -> None:
    model = tiny_model("linear")
    before = learned_bits(model)
    model.head.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"step 1 of .*not finite are the gradient of head\.bias; the loss is \d"):
        quiet(model, tiny_data())
    assert learned_bits(model) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TensorDataset(tiny_images(4), torch.tensor([0, 1, 3, 1])), "A label is 3.*0 to 2"),
        (TensorDataset(tiny_images(4), torch.tensor([0, 1, -100, 1])), "A label is -100"),
        (TensorDataset(tiny_images(4), torch.zeros(4)), "labels of a batch are a torch.float32"),
        (TensorDataset(torch.zeros(4, 3, 16, 16), torch.zeros(4).long()), r"shape \(4, 3, 16, 16\).*32, 32"),
        (TensorDataset(torch.zeros(4, 3, 32, 32).byte(), torch.zeros(4).long()), "torch.uint8"),
        (TensorDataset(tiny_images(0), torch.zeros(0).long()), "training data is empty"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: TensorDataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        quiet(tiny_model("linear"), data)


def test_class_names_that_do_not_fit_are_refused() -> None:
    data = tiny_data()
    model = tiny_model("linear")
    data.classes = ["class 2", "class 1", "class 0"]
    with pytest.raises(DataError, match="the same names in the same order"):
        quiet(model, data)
    model.classes = ["0", "1", "2"]  # mere numbers: any three classes
    quiet(model, data)
    data.classes = ["class 0", "class 1"]
    with pytest.raises(DataError, match="class 0, class 1, the model has 0, 1, 2"):
        quiet(model, data)


def test_a_model_in_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(TrainingError, match="configured for FSDP"):
        quiet(tiny_model("linear"), tiny_data())


def test_fewer_images_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 9)
    with pytest.raises(ConfigError, match="batch_size = 8 over 9 processes"):
        quiet(tiny_model("linear"), tiny_data())


# What is reported


def test_history_and_record_are_plain_json() -> None:
    model = tiny_model()
    data = tiny_data()
    data.content_hash = "sha256:0"
    history = quiet(model, data, tiny_data(9), test=tiny_data(9))
    values = json.loads(json.dumps(history.to_dict()))
    assert values["test"]["accuracy"]["value"] == history.test_accuracy
    record = json.loads(json.dumps(history.record(task="noise", method="viapt")))
    counts = model.parameter_counts()
    expected = {"method": "viapt", "task": "noise", "seed": 0, "data_hash": "sha256:0"}
    assert record | expected == record
    assert record["learnable_parameters"] == counts["method"] + counts["head"]
    assert {"test_accuracy", "val_accuracy", "protocol", "seconds"} <= record.keys()
    assert record["protocol"]["lr"] == model.method.learning_rate
    assert record["protocol"]["train"] == {"images": 20, "hash": "sha256:0"}


def test_elsewhere_than_on_a_terminal_an_epoch_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    fit(tiny_model("linear"), tiny_data(), tiny_data(9), epochs=2, batch_size=8)
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert all(word in lines[0] for word in ("loss", "accuracy", "val"))


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    quiet(tiny_model("linear"), tiny_data(), tiny_data(9), test=tiny_data(9))
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_live_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with TrainingDisplay(3, 20, 20, shown=True, console=console) as display:
        display.step(2, 10, 0.75)
        display.epoch(Epoch(2, 6, 0.1, 0.7, 0.5, 0.9, 0.8125, 1.0))
    text = console.file.getvalue()
    for shown in ("epoch 2/3", "images/s", "left", "loss 0.7500", "val 0.8125"):
        assert shown in text


def test_tensorboard_has_every_step_once_also_after_an_interruption(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    class Stopped(Augmented):
        read = 0

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.read += 1
            if self.read > 36:  # the last batch of the second epoch: steps 4 and 5 were recorded, but not saved
                raise RuntimeError("power cut")
            return super().__getitem__(index)

    arguments = {"out": tmp_path, "tensorboard": True, "val": tiny_data(9)}
    with pytest.raises(RuntimeError, match="power cut"):
        quiet(tiny_model(), Stopped(tiny_data()), **arguments)
    history = quiet(tiny_model(), Augmented(tiny_data()), **arguments)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 7))
    accuracies = [event.value for event in events.Scalars("val/accuracy")]
    assert accuracies == pytest.approx([epoch.val_accuracy for epoch in history.epochs])
