"""A dual encoder computed by MLX: on the GPU of a Mac, on the CPU elsewhere."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.exported.base import ExportedModel

MLX_FILE = "mlx/model.safetensors"
MLX_MODELS = ("clip", "siglip")


class MlxModel(ExportedModel):
    """One file of weights, read when it is first asked for.

    Raises:
        ClipDomainError: MLX is not installed, or (at the first call) the weights are not those of the configuration.
    """

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self._mx = require("mlx.core", extra="mlx")

    @cached_property
    def _towers(self):
        from hf_clip_domain.models.exported.mlx_towers import Towers, quantize_towers

        towers = Towers(self.config)
        if self.record.precision == "int8":
            quantize_towers(towers, tuple(self.record.quantization.get("kept_in_float", ())))
        try:
            towers.load_weights(str(self.folder / MLX_FILE))
        except (ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ClipDomainError(f"{self.folder / MLX_FILE} does not fit config.json: {first}") from error
        self._mx.eval(towers.parameters())
        return towers

    def get_image_features(self, pixel_values):
        return self._result(self._towers.embed_images(self._array(pixel_values.float())))

    def get_text_features(self, input_ids, attention_mask=None):
        mask = None if attention_mask is None else self._array(attention_mask)
        return self._result(self._towers.embed_texts(self._array(input_ids.int()), mask))

    def _array(self, tensor: torch.Tensor):
        return self._mx.array(tensor.detach().cpu().numpy())

    @staticmethod
    def _result(array) -> torch.Tensor:
        return torch.from_numpy(np.array(array))  # MLX computes when the values are asked for
