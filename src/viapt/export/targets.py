"""The graph as a file: one function for each target, which converts once and gives a function that writes."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from viapt.export.graph import Deployed
from viapt.exported import IMAGES, LOGITS, NOISE
from viapt.runtimes.base import NOTE

Writer = Callable[[Path, dict[str, Any]], None]  # file, what it says about itself
ONE_FILE = 1_900_000_000  # bytes of weights; protobuf, and so ONNX, ends at 2 GB


def to_onnx(program: ExportedProgram, deployed: Deployed) -> Writer:
    """By torch's own exporter. Above 2 GB the weights lie in a file beside it."""
    names = [IMAGES, NOISE][: len(program.graph_signature.user_inputs)]
    with quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=[LOGITS],
            dynamic_shapes={IMAGES: {0: "batch"}, NOISE: {0: "noise_batch"}}
            if NOISE in names
            else {IMAGES: {0: "batch"}},
        )
    assert converted is not None  # as it is for dynamo=True
    size = sum(tensor.nbytes for tensor in deployed.state_dict().values())

    def write(file: Path, described: dict[str, Any]) -> None:
        converted.model.metadata_props[NOTE] = in_json(described)
        converted.save(file, external_data=size > ONE_FILE)

    return write


def to_openvino(program: ExportedProgram, deployed: Deployed) -> Writer:
    """By OpenVINO's frontend for torch (not by `openvino.convert_model`, which reports its use to its makers)."""
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with quiet():
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # which the frontend does not keep alive
        frontend: Any = FrontEndManager().load_by_framework("pytorch")
        converted = frontend.convert(frontend.load(decoder))
    converted.outputs[0].get_tensor().set_names({LOGITS})
    for value, example in zip(converted.inputs, deployed.inputs(1, 1), strict=True):
        value.get_node().set_partial_shape(openvino.PartialShape([-1, *example.shape[1:]]))
    converted.validate_nodes_and_infer_types()

    def write(file: Path, described: dict[str, Any]) -> None:
        converted.set_rt_info(in_json(described), [NOTE])
        try:
            openvino.save_model(converted, str(file), compress_to_fp16=False)
        except RuntimeError as error:  # which is what it says of a full disk, too
            raise OSError(str(error)) from error

    return write


def to_torch(program: ExportedProgram, deployed: Deployed) -> Writer:
    """By `torch.export.save`, which others read with `torch.export.load`; without the pickled example inputs."""
    plain = program.run_decompositions({})
    plain.example_inputs = None

    def write(file: Path, described: dict[str, Any]) -> None:
        # Through memory: where the disk is full, torch's own writer ends the process.
        buffer = io.BytesIO()
        torch.export.save(plain, buffer, extra_files={NOTE: in_json(described)})
        file.write_bytes(buffer.getbuffer())

    return write


WRITERS: dict[str, Callable[[ExportedProgram, Deployed], Writer]] = {
    "onnx": to_onnx,
    "openvino": to_openvino,
    "torch": to_torch,
}


def in_json(described: dict[str, Any]) -> str:
    """Plain ASCII, which every container keeps as it is."""
    return json.dumps(described, sort_keys=True, allow_nan=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Converters warn, at length, of what is no concern of the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
