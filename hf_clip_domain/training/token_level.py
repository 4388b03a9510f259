"""A fixed micro-batch size where the size of the pictures changes: more rows of small pictures, the same tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_clip_domain.models.image_positions import find_image_positions, image_size_of
from hf_clip_domain.training.micro_batching import MicroBatches

_WITHOUT_PATCHES = 16  # pixels: what a convolutional tower computes grows with the area all the same


class TokenLevel:
    """Micro-batches of about the tokens that `rows` pairs have at the model's own size, patches and caption together.

    The contrastive batch, and with it the gradient, is the same whatever they are.

    Args:
        model: at the largest size of the run.
        patch_dropout: share of the patches that is left out.

    Attributes:
        rows: a micro-batch at the model's own size; less after a shortage of memory.
    """

    def __init__(self, model: nn.Module, rows: int, patch_dropout: float = 0.0) -> None:
        positions = find_image_positions(model)
        self.patch = _WITHOUT_PATCHES if positions is None else positions.patch
        self.largest, self.kept, self.rows = image_size_of(model), 1 - patch_dropout, rows

    def plan(self, inputs: dict[str, Any]) -> MicroBatches:
        """Those of a step with these inputs."""
        most, own = self._tokens(inputs)
        return MicroBatches(max(1, int(self.rows * most // own)))

    def learn(self, plan: MicroBatches, inputs: dict[str, Any]) -> None:
        """Take note of the micro-batches that a step was left with."""
        if plan.size < self.plan(inputs).size:
            most, own = self._tokens(inputs)
            self.rows = max(1, int(plan.size * own // most))

    def _tokens(self, inputs: dict[str, Any]) -> tuple[float, float]:
        """Of a pair at the model's own size, and at the inputs'."""
        words = inputs["input_ids"].shape[1]
        size = inputs["pixel_values"].shape[-1] if "pixel_values" in inputs else self.largest
        most, own = (self.kept * (side / self.patch) ** 2 + words for side in (self.largest, size))
        return most, own
