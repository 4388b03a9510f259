"""A dual encoder computed by ONNX Runtime."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.exported.base import ExportedModel
from hf_clip_domain.models.exported.record import ExportRecord

VISION_FILE, TEXT_FILE = "onnx/vision_model.onnx", "onnx/text_model.onnx"


class OnnxModel(ExportedModel):
    """Two ONNX files, each opened when it is first asked for; on the CPU.

    Args:
        threads: of one call; default as many as torch uses (the cores, or what `OMP_NUM_THREADS` says).

    Raises:
        ClipDomainError: onnxruntime is not installed, or `threads` is below 1.
    """

    def __init__(self, folder: Path, config: Any, record: ExportRecord, threads: int | None = None) -> None:
        super().__init__(folder, config, record)
        self._runtime = require("onnxruntime", extra="onnx")
        if threads is not None and threads < 1:
            raise ClipDomainError(f"threads is {threads}; expected 1 or more.")
        self._threads = threads or torch.get_num_threads()

    @cached_property
    def _vision(self):
        return self._session(VISION_FILE)

    @cached_property
    def _text(self):
        return self._session(TEXT_FILE)

    def get_image_features(self, pixel_values):
        return self._run(self._vision, {"pixel_values": pixel_values.float()})

    def get_text_features(self, input_ids, attention_mask=None):
        inputs = {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask})
        return self._run(self._text, inputs)

    def _session(self, file: str):
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # its warnings tell of nodes that its own optimiser took away
        try:
            return self._runtime.InferenceSession(self.folder / file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common class
            raise ClipDomainError(f"{self.folder / file} cannot be opened by ONNX Runtime: {error}") from error

    @staticmethod
    def _run(session, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in inputs.items()}
        return torch.from_numpy(session.run(None, arrays)[0])
