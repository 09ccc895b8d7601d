"""Files for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from jaxtyping import Float32

from viapt.runtimes.base import NOTE, Session, refusing


class OnnxSession(Session):
    """A .onnx file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path) -> None:
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        with refusing(path, self.runtime):
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.note = self.session.get_modelmeta().custom_metadata_map.get(NOTE)
        self.inputs = {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in self.session.get_inputs()
        }

    def run(self, inputs: dict[str, Float32[np.ndarray, "..."]]) -> Float32[np.ndarray, "batch classes"]:
        outputs: Any = self.session.run(None, inputs)
        return outputs[0]
