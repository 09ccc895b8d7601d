"""The model as a graph: what is traced, and what must not be in it."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from viapt.errors import ConfigError
from viapt.model import PromptedClassifier

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TRACED_BATCH = 2  # neither of the sizes that `parity` tries
SOLVERS = ("linalg", "svd", "eig", "qr", "cholesky", "lu_factor", "inverse", "pinverse", "lstsq")
FREE_OF_SOLVERS = ("linalg_vector_norm", "linalg_matrix_norm", "linalg_cross")


class Deployed(nn.Module):
    """Images (and noise, for `multi`) -> logits, with everything else built in.

    Args:
        model: left as it is; its weights are copied, to float32 on the CPU.
        policy: "mean", "fixed" or "multi".
        seed: of the noise of `fixed`.
        dtype: how the backbone's matrices are stored. Biases, scales and all that was learned stay in float32: they are
            small, and rounding them gains nothing.

    Attributes:
        noise: of `fixed`, (1, lambda, dim), else None.

    Raises:
        ConfigError: a weight is too large for `dtype`.
    """

    noise: Tensor | None

    def __init__(self, model: PromptedClassifier, policy: str, seed: int, dtype: str) -> None:
        super().__init__()
        self.model = slim(model)
        self.policy = policy
        self.register_buffer("noise", self.model.draw_noise(1, seed=seed) if policy == "fixed" else None)
        self.halves: list[str] = []
        if DTYPES[dtype] != torch.float32:
            self.store_in(DTYPES[dtype])
        self.eval()

    def store_in(self, dtype: torch.dtype) -> None:
        """Round the backbone's matrices to two bytes a number."""
        for name, parameter in self.model.backbone.named_parameters(prefix="backbone"):
            if parameter.ndim < 2:
                continue
            rounded = parameter.detach().to(dtype)
            if not bool(rounded.isfinite().all()):
                raise ConfigError(
                    f"{name} has values up to {parameter.abs().max():g}, too large for {dtype}",
                    remedy="export with dtype bfloat16 or float32",
                )
            parameter.data = rounded
            self.halves.append(name)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "rows lambda_ dim"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Logits; `noise` has a row for each image, or one for all."""
        wide = {name: self.model.get_parameter(name).float() for name in self.halves}
        options = {"noise": self.rows(images.shape[0], noise)}
        return (
            torch.func.functional_call(self.model, wide, (images,), options) if wide else self.model(images, **options)
        )

    def rows(self, batch: int, noise: Tensor | None) -> Tensor | None:
        """The noise of each image."""
        if self.noise is not None:
            return self.noise.expand(batch, -1, -1)
        if noise is None:
            return None
        # Broadcasting would tie the two sizes together in the graph: the row is looked up instead.
        last = torch.arange(noise.shape[0])[-1:]
        return noise.index_select(0, torch.minimum(torch.arange(batch), last))

    def inputs(self, batch: int, rows: int) -> tuple[Tensor, ...]:
        """Normally distributed images, and as much noise as asked for, if the graph takes any."""
        generator = torch.Generator().manual_seed(batch)
        images = torch.randn(batch, 3, *self.model.backbone.preprocessing.image_size, generator=generator)
        return (images, self.model.draw_noise(rows, seed=batch)) if self.policy == "multi" else (images,)


def slim(model: PromptedClassifier) -> PromptedClassifier:
    """A copy in float32 on the CPU, without what only training needs."""
    copied = copy.deepcopy(model).cpu()
    copied.backbone.float()
    copied.requires_grad_(False).eval()
    copied.checkpointing = False
    copied.backbone.compile_blocks(False)
    for name in copied.method.transient_state():
        path, _, buffer = name.rpartition(".")
        copied.method.get_submodule(path).register_buffer(buffer, torch.empty(0))
    for name in copied.method.replaced():
        copied.backbone.get_parameter(name).data = torch.empty(0)
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.clone(memory_format=torch.contiguous_format)  # files hold whole storages
    return copied


def trace(deployed: Deployed) -> ExportedProgram:
    """The graph, for any batch size."""
    sizes: dict[str, Any] = {"images": {0: Dim("batch", min=1)}}
    sizes["noise"] = {0: Dim("rows", min=1)} if deployed.policy == "multi" else None
    inputs = deployed.inputs(TRACED_BATCH, TRACED_BATCH + 1)
    if deployed.policy != "multi":
        del sizes["noise"]
    with torch.no_grad():
        return torch.export.export(deployed, inputs, dynamic_shapes=sizes, strict=False)


def check_graph(program: ExportedProgram, model: PromptedClassifier) -> None:
    """Refuse a graph that solves for eigenvectors or the like: runtimes lack these, or give other signs and orders.

    Raises:
        ConfigError: naming what it computes.
    """
    found = sorted({name for name in operators(program) if is_solver(name)})
    if found:
        raise ConfigError(
            f"The method {model.method.name} with {model.method.config()} computes {', '.join(found)} for each image,"
            " which an exported graph cannot",
            expected="subspaces that are fixed after training",
            remedy="fit again with another reduction: running, random, select or linear",
        )


def operators(program: ExportedProgram) -> list[str]:
    """Names of all operators of a graph and of the graphs inside it, such as "aten.linear.default"."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]


def is_solver(operator: str) -> bool:
    """Whether this factorises a matrix."""
    name = operator.removeprefix("aten.").lstrip("_").partition(".")[0]
    return name.startswith(SOLVERS) and name not in FREE_OF_SOLVERS
