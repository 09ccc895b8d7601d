"""Files for OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import torch
from jaxtyping import Float32

from viapt.runtimes.base import NOTE, Session, refusing


class OpenVinoSession(Session):
    """An .xml file and its .bin file in OpenVINO, on the CPU, in float32 (its own choice may be less)."""

    def __init__(self, path: Path) -> None:
        self.runtime = f"openvino {openvino.__version__.split('-')[0]}"
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to one core
        }
        with refusing(path, self.runtime):
            core = openvino.Core()
            model = core.read_model(str(path))
            self.note = str(model.get_rt_info([NOTE]).value) if model.has_rt_info([NOTE]) else None
            self.inputs = {
                value.get_any_name(): tuple(
                    None if size.is_dynamic else size.get_length() for size in value.partial_shape
                )
                for value in model.inputs
            }
            self.model = core.compile_model(model, "CPU", settings)

    def run(self, inputs: dict[str, Float32[np.ndarray, "..."]]) -> Float32[np.ndarray, "batch classes"]:
        return np.array(self.model(inputs)[0])
