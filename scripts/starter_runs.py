"""Runs of the starter on random pixels and tokens, for benchmarks of what is done beside the steps."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.training import ClipTrainer


class RandomPairs(Dataset):
    def __init__(self, count: int, size: int, end: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(count, 3, size, size, generator=generator)
        self.ids = torch.randint(5, 1000, (count, 32), generator=generator)
        self.ids[:, -1] = end

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int) -> dict[str, torch.Tensor]:
        row = key % len(self)
        ids = self.ids[row]
        return {"pixel_values": self.pixels[row], "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def starter_trainer(folder: Path, *, batch: int, steps: int, **settings: Any) -> ClipTrainer:
    """A trainer that reports to nobody and saves nothing; `settings` as for `ClipTrainingArguments`."""
    torch.manual_seed(0)
    model, _ = load_model("starter")
    quiet = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "log_level": "error"}
    arguments = ClipTrainingArguments(
        str(folder), per_device_train_batch_size=batch, max_steps=steps, **{**quiet, **settings}
    )
    pairs = RandomPairs(4 * batch, model.config.vision_config.image_size, model.config.text_config.eos_token_id)
    return ClipTrainer(model, arguments, train_dataset=pairs)


def train_silently(trainer: ClipTrainer) -> None:
    """Train without the line that the trainer prints for every log."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
