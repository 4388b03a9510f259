"""From a process's embeddings to the loss of the whole batch, and the parts of it that are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_clip_domain.losses.gather import gather_rows, gather_targets
from hf_clip_domain.types import LossOutput


def whole_batch_loss(
    loss: nn.Module, embeddings: Mapping[str, Any], targets: Any, *, process: int, processes: int
) -> LossOutput:
    """The loss of the rows of all processes, with its gradient for those of this one.

    Args:
        embeddings: what the model gives here, `image_embeds` (n, d), or (r, n, d) at several sizes, `text_embeds` (n, d),
            `logit_scale`, and the loss's own parameters where it has some.
        targets: of these rows, see `hf_clip_domain.types.Loss`.
    """
    image_embeds = gather_rows(embeddings["image_embeds"])  # (n * processes, d), or (r, n * processes, d)
    text_embeds = gather_rows(embeddings["text_embeds"])  # (n * processes, d)
    options = {"logit_scale": embeddings["logit_scale"], "targets": gather_targets(targets)}
    if getattr(loss, "shares_work", False):
        options["share"] = (process, processes)
        options |= {name: embeddings[name] for name in ("logit_bias",) if name in embeddings}
    parameters = dict(embeddings.get("loss_parameters", {}))
    batch = (image_embeds.detach(), text_embeds.detach(), embeddings["logit_scale"].detach())
    if hasattr(loss, "begin") and loss.begin(*batch):
        # Data parallel wrappers hand out copies: they take the new values, and pass their gradients on.
        new = dict(loss.named_parameters())
        parameters = {name: value + (new[name] - value).detach() for name, value in parameters.items()}
    return torch.func.functional_call(loss, parameters, (image_embeds, text_embeds), options)


class LoggedParts:
    """The parts of every loss since the last log, and of the latest one, which outlast it."""

    def __init__(self) -> None:
        self.latest: Mapping[str, torch.Tensor] = {}
        self._losses: list[Mapping[str, torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self._losses)

    def add(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Keep the parts of one loss."""
        self.latest = parts
        self._losses.append(parts)

    def cut(self, count: int) -> None:
        """Forget all but the first so many losses."""
        del self._losses[count:]

    def means(self) -> dict[str, float]:
        """The mean of each part over the losses that had it."""
        names = dict.fromkeys(name for parts in self._losses for name in parts)
        return {name: torch.stack([p[name] for p in self._losses if name in p]).mean().item() for name in names}
