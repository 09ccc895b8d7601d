"""The checks of the contract, in the order in which they are run."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from viapt.artifact import load
from viapt.methods import METHODS, create_method
from viapt.methods.base import PromptMethod, arguments
from viapt.methods.linear import Linear
from viapt.model import PromptedClassifier
from viapt.testing.subject import CLASSES, Subject, train

Check = Callable[[Subject], None]


def shapes(subject: Subject) -> None:
    """Prompts (batch, p, width) before every block; logits (batch, classes); a scalar loss."""
    model = subject.model()
    method, widths = model.method, model.method.widths
    for batch in (1, 3):
        images, labels = subject.task(batch)
        _, patches, grid, _ = model.backbone.embed(images, method.num_prompts)
        for noise in (None, model.draw_noise(batch, seed=0)):
            prompts = method.start(patches, grid, noise)
            require(prompts.shape == (batch, method.num_prompts, widths[0]), f"start gives {tuple(prompts.shape)}")
            for layer, width in enumerate(widths[1:], start=1):
                left = prompts.repeat(1, 1, width // prompts.shape[-1])  # as wide as if it came out of a merging
                prompts = method.carry(layer, left)
                shape = (batch, method.num_prompts, width)
                require(prompts.shape == shape, f"carry({layer}) gives {tuple(prompts.shape)}")
        loss, logits = model(images, labels)
        require(logits.shape == (batch, len(CLASSES)) and loss.shape == (), "logits or loss misshapen")


def configuration(subject: Subject) -> None:
    """`config()` holds every keyword argument, survives JSON, and builds the same method again."""
    model = subject.model()
    method, backbone = model.method, model.backbone
    require(set(method.config()) == set(arguments(type(method))), "config() and the constructor differ")
    require(0 <= method.num_instance_prompts <= method.num_prompts, "more instance prompts than prompts")
    with known(type(method)):
        options = json.loads(json.dumps(method.config()))
        again = create_method(method.name, backbone.widths, backbone.depth, backbone.patch_size, **options)
        PromptedClassifier(subject.backbone, again, CLASSES)
    require(again.config() == method.config(), "a rebuilt method has another configuration")
    again.load_state_dict(method.state_dict())
    same_tensors(again.state_dict(), method.state_dict())


def gradients(subject: Subject) -> None:
    """Method and head get gradients, the backbone none; and the very same ones after an evaluation pass.

    In the second step at the latest: what starts as a product with zeros has one factor that must move first.
    """
    found = []
    for model in fresh_and_evaluated(subject):
        train(model, *subject.task(), 1)
        model.zero_grad()
        loss, _ = model(*subject.task())
        loss.backward()
        without = [name for name, p in model.learnable().items() if p.grad is None or not p.grad.abs().sum() > 0]
        require(not without, f"no gradient reaches {', '.join(without)}")
        frozen = [name for name, p in model.backbone.named_parameters() if p.requires_grad or p.grad is not None]
        require(not frozen, f"the backbone learns: {', '.join(frozen)}")
        found.append({name: p.grad for name, p in model.learnable().items()})
    same_tensors(found[1], found[0])


def every_tensor_moves(subject: Subject) -> None:
    """Two steps change every learnable tensor; also after an evaluation pass."""
    for model in fresh_and_evaluated(subject):
        before = {name: p.detach().clone() for name, p in model.learnable().items()}
        train(model, *subject.task(), 2)
        still = [name for name, p in model.learnable().items() if torch.equal(p, before[name])]
        require(not still, f"two training steps do not change {', '.join(still)}")


def backbone_unchanged(subject: Subject) -> None:
    """Training leaves every bit of the backbone, its modes and its answer without the method."""
    backbone = copy.deepcopy(subject.backbone)
    images, labels = subject.task()
    before, answer = copy.deepcopy(backbone.state_dict()), backbone(images)
    model = subject.model(backbone=backbone)
    own = copy.deepcopy(model.backbone.state_dict())
    train(model, images, labels, 3)
    same_tensors(backbone.state_dict(), before)
    same_tensors(model.backbone.state_dict(), own)
    for part in (backbone, model.backbone):
        require(not any(module.training for module in part.modules()), "part of the backbone is in training mode")
    require(torch.equal(backbone(images), answer), "the backbone answers differently without the method")


def zero_prompt_parity(subject: Subject) -> None:
    """Without prompts the loop over the blocks is the backbone's own forward pass, in float64 to the order of sums."""
    model, images = subject.model(Linear).double(), subject.task()[0].double()
    alone = model.head(model.backbone(images))
    require(close(model(images), alone, 1e-12), f"the loop differs by {(model(images) - alone).abs().max():.1e}")


def artifact_round_trip(subject: Subject) -> None:
    """Saved and loaded, a trained model gives the same logits, bit for bit."""
    model, (images, _) = subject.trained(), subject.task()
    with known(subject.method), tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "adapter")
        again = load(Path(folder) / "adapter", backbone=copy.deepcopy(subject.backbone))
    require(again.classes == model.classes, f"classes became {again.classes}")
    require(torch.equal(again.eval()(images), model(images)), "a loaded adapter gives other logits")


def evaluation_is_deterministic(subject: Subject) -> None:
    """Evaluation repeats itself and changes no state; neither it nor training uses the global random numbers."""
    model, (images, labels) = subject.trained(), subject.task()
    before = {name: t.clone() for name, t in (*model.named_parameters(), *model.named_buffers())}
    numbers = torch.get_rng_state()
    require(torch.equal(model(images), model(images)), "two evaluations differ")
    same_tensors(dict((*model.named_parameters(), *model.named_buffers())), before)
    model.train()(images, labels)
    require(torch.equal(torch.get_rng_state(), numbers), "the global random numbers are used")


def batch_does_not_matter(subject: Subject) -> None:
    """An image's logits do not depend on which others are in its batch, their order and number (in float64).

    A method that declares `batch_dependent` is exempt, and must be.
    """
    model, (images, _) = subject.trained().double(), subject.task()
    images = images.double()
    noise = model.draw_noise(1, seed=0).expand(len(images), -1, -1)
    for z in (None, noise):
        whole = model(images, noise=z)
        order = torch.arange(len(images)).flip(0)
        reordered = model(images[order], noise=z)[order]
        alone = torch.cat([model(image[None], noise=None if z is None else z[:1]) for image in images])
        if model.method.batch_dependent:
            require(not close(alone, whole, 1e-4), "batch_dependent is declared, but an image alone gives the same")
        else:
            require(close(reordered, whole, 1e-9), f"order matters: {(reordered - whole).abs().max():.1e}")
            require(close(alone, whole, 1e-9), f"the batch matters: {(alone - whole).abs().max():.1e}")


def checkpointing(subject: Subject) -> None:
    """Recomputing activations changes no gradient, prompts sampled from a distribution included."""
    plain = subject.trained().train()
    recomputing = copy.deepcopy(plain)
    recomputing.checkpointing = True
    with mock.patch.object(recomputing.backbone, "advance", wraps=recomputing.backbone.advance) as advance:
        for model in (plain, recomputing):
            loss, _ = model(*subject.task())
            model.zero_grad()
            loss.backward()
        blocks, again = plain.backbone.depth, advance.call_count - plain.backbone.depth
        if plain.method.num_prompts or plain.method.inside:  # otherwise no gradient enters, and nothing is stored
            least = min(1, blocks - 1)  # what learns behind a block gives that one no gradient
            expected = again == blocks if plain.method.num_prompts else least <= again <= blocks
            require(expected, "no activation was recomputed")
    for name, p in recomputing.learnable().items():
        require(close(p.grad, plain.learnable()[name].grad, 1e-6), f"checkpointing changes the gradient of {name}")


def carries(subject: Subject) -> None:
    """`carries` says whether `carry` reads the prompts that left the block before."""
    method = subject.trained().double().method
    if not method.num_prompts:
        return
    generator = torch.Generator().manual_seed(2)
    for layer, width in enumerate(method.widths[1:], start=1):
        one, other = torch.randn(2, 3, method.num_prompts, width, generator=generator, dtype=torch.float64)
        same = torch.equal(method.carry(layer, one), method.carry(layer, other))
        require(same is not method.carries, f"carries is {method.carries}, and carry({layer}) does otherwise")


def shortcuts(subject: Subject) -> None:
    """Leaving out what nobody reads changes neither loss, logits nor gradients (in float64, to the order of sums)."""
    short = subject.trained().double().train()
    plain = copy.deepcopy(short)
    plain.backbone.shortcuts = False
    (images, labels), found = subject.task(), []
    for model in (short, plain):
        model.zero_grad()
        loss, logits = model(images.double(), labels)
        loss.backward()
        found.append({"loss": loss, "logits": logits} | {name: p.grad for name, p in model.learnable().items()})
    for name, tensor in found[0].items():
        require(close(tensor, found[1][name], 1e-10), f"shortcuts change {name}")


def draws_share_their_images(subject: Subject) -> None:
    """Several draws of noise in one pass give what each of them gives alone (in float64, to the order of sums)."""
    model, images = subject.trained().double(), subject.task(5)[0].double()
    noise = [model.draw_noise(5, seed=0, index=index) for index in range(3)]
    together = model.classify(model.embed(images), torch.cat(noise))
    alone = torch.cat([model(images, noise=z) for z in noise])
    if not model.method.batch_dependent:
        require(close(together, alone, 1e-10), f"they differ by {(together - alone).abs().max():.1e}")


def copies(subject: Subject) -> None:
    """A deep copy and a pickled model answer alike, and learn apart from the original."""
    model, (images, labels) = subject.trained(), subject.task()
    answer = model(images)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        require(torch.equal(again(images), answer), "a copy answers differently")
        train(again, images, labels, 1)
        require(torch.equal(model(images), answer), "training a copy changes the original")


def gradcheck(subject: Subject) -> None:
    """Gradients are the derivatives of the logits, in float64.

    Where a method declares no `exact_gradient`, only the head's are, and it is checked that the others' are not.
    """
    model = subject.trained().double()
    images = subject.task(3)[0].double()
    noise = model.draw_noise(3, seed=0)
    every = {name: p.detach().clone().requires_grad_() for name, p in model.learnable().items()}
    head = {name: p for name, p in every.items() if name.startswith("head.")}

    def exact(parameters: dict[str, Tensor]) -> bool:
        def logits(*values: Tensor) -> Tensor:
            names = dict(zip(parameters, values, strict=True))
            return torch.func.functional_call(model, names, (images,), {"noise": noise})

        check: Any = torch.autograd.gradcheck  # its annotations leave out what it takes
        return check(logits, tuple(parameters.values()), fast_mode=True, raise_exception=False)

    require(exact(head), "the head's gradient is wrong")
    if model.method.exact_gradient:
        require(exact(every), "a gradient is wrong")
    else:
        require(not exact(every), "exact_gradient is denied, but the gradients are exact")


def learns(subject: Subject) -> None:
    """A tiny task is learned; the method alone, below a head that stays random, lowers the loss too."""
    images, labels = subject.task()
    model = subject.model()
    train(model, images, labels, 60, lr=2e-2)
    right = (model.eval()(images).argmax(-1) == labels).float().mean().item()
    require(right > 0.9, f"only {right:.0%} of the training images are right")
    if list(model.method.parameters()):
        model = subject.model()
        model.head.requires_grad_(False)
        losses = train(model, images, labels, 30, lr=2e-2)
        require(losses[-1] < losses[0], f"the method alone leads from loss {losses[0]:.4f} to {losses[-1]:.4f}")


def same_seed_same_losses(subject: Subject) -> None:
    """Two runs give the same losses, bit for bit, whatever the global random numbers are."""
    first = train(subject.model(), *subject.task(), 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        second = train(subject.model(), *subject.task(), 4)
    require(first == second, f"losses {first} and {second}")


def documented(subject: Subject) -> None:
    """The docstrings name the paper and its equations, and every argument."""
    own, module = inspect.getdoc(subject.method) or "", inspect.getmodule(subject.method)
    text = own + (inspect.getdoc(module) or "")
    missing = [name for name in arguments(subject.method) if not re.search(rf"^\s*{name}:", own, re.MULTILINE)]
    require(not missing, f"undocumented arguments: {', '.join(missing)}")
    require(len(own) > 0, "no docstring")
    if arguments(subject.method):  # linear probing has no paper
        require(re.search(r"arXiv \d{4}\.\d{5}", text) is not None, "no arXiv number of the paper")
        require(re.search(r"\beq\. ?\d|^ {4}.* = .*", text, re.MULTILINE) is not None, "no equation of the paper")


def compiles(subject: Subject, backend: str = "aot_eager") -> None:
    """Evaluation is one graph: `torch.compile(fullgraph=True)`."""
    model, (images, _) = subject.trained(), subject.task()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=backend)(images)
        require(close(compiled, model(images), 1e-4), "the compiled model answers differently")


def exports(subject: Subject) -> None:
    """`torch.export` takes evaluation with a batch size left open; `batch_dependent` methods are exempt."""
    model, (images, _) = subject.trained(), subject.task(6)
    if model.method.batch_dependent:
        return
    dynamic = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(model, (images[:4],), dynamic_shapes=dynamic, strict=False)
    for some in (images[:2], images):
        require(close(program.module()(some), model(some), 1e-4), "the exported model answers differently")


def _by_name(*checks: Check) -> dict[str, Check]:
    return {getattr(check, "__name__", ""): check for check in checks}


CHECKS = _by_name(
    shapes,
    configuration,
    gradients,
    every_tensor_moves,
    backbone_unchanged,
    zero_prompt_parity,
    artifact_round_trip,
    evaluation_is_deterministic,
    batch_does_not_matter,
    checkpointing,
    carries,
    shortcuts,
    draws_share_their_images,
    copies,
    gradcheck,
    learns,
    same_seed_same_losses,
    documented,
)
COMPILED_CHECKS = _by_name(compiles, exports)


def require(condition: bool, message: str) -> None:
    """An assertion that `python -O` keeps."""
    if not condition:
        raise AssertionError(message)


def fresh_and_evaluated(subject: Subject) -> Iterator[PromptedClassifier]:
    """A new model; and a new one that has answered once before it trains."""
    yield subject.model()
    model = subject.model()
    with torch.no_grad():
        model(subject.task()[0])
    yield model


@contextmanager
def known(method: type[PromptMethod]) -> Iterator[None]:
    """A third party's method is found by its name for a while."""
    with mock.patch.dict(METHODS, {method.name: method}):
        yield


def close(one: Tensor | None, other: Tensor | None, tolerance: float) -> bool:
    """Equal within `tolerance` of the largest entry (and of 1)."""
    if one is None or other is None:
        return one is other
    scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
    return one.shape == other.shape and bool(((one - other).abs() <= tolerance * scale).all())


def same_tensors(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal names and bits."""
    require(set(found) == set(expected), f"tensors appeared or vanished: {set(found) ^ set(expected)}")
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    require(not different, f"changed: {', '.join(different)}")
