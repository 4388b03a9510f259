"""What every exported model has in common, whichever library computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_clip_domain.models.exported.record import ExportRecord


class ExportedModel(nn.Module):
    """Looks like a dual encoder to whoever embeds with one: `config`, `logit_scale`, and features of both towers.

    The projected embeddings are not normalised, as those of the models themselves. Where it computes and in which
    precision is the matter of its library: it stays there when it is moved or cast, and takes tensors from any device.

    Args:
        folder: the exported folder.
        config: the configuration of the model it was made from.
        record: the folder's `export.json`.
    """

    def __init__(self, folder: Path, config: Any, record: ExportRecord) -> None:
        super().__init__()
        self.folder, self.config, self.record = Path(folder), config, record
        self.name_or_path = str(folder)
        self.logit_scale = nn.Parameter(torch.tensor(record.logit_scale), requires_grad=False)
        if record.logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(record.logit_bias), requires_grad=False)
        self.eval()

    @property
    def weight_files(self) -> list[Path]:
        """What makes it another model than one of the same configuration."""
        return [self.folder / name for name in sorted(self.record.files)]

    def _apply(self, function, recurse=True):
        return self

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`pixel_values` (n, 3, h, w) -> (n, d) float32 on the CPU."""
        raise NotImplementedError

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`input_ids` (n, t), `attention_mask` (n, t) -> (n, d) float32 on the CPU."""
        raise NotImplementedError
