"""The passes over a few rows to which the memory model of a training step is fitted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import nn

from hf_clip_domain.training.memory_model import MemoryModel, fit_memory_model
from hf_clip_domain.training.replay import StepStart
from hf_clip_domain.types import Targets

_LOSS_ROWS = 512


def probe(
    model: nn.Module,
    loss: nn.Module,
    inputs: dict,
    call: dict,
    context: Callable[[], AbstractContextManager],
) -> MemoryModel:
    """Fit a memory model to a training step on `inputs`; gradients and random state are left as they were.

    Args:
        model: the model itself, with the embedding forward of `micro_batching`, not wrapped for data parallel training.
        inputs: a batch, with or without `targets`.
        call: what the forward call takes besides (`image_sizes`).
        context: autocast, as the trainer uses it.
    """
    inputs = dict(inputs)
    targets, rows = inputs.pop("targets", None), len(inputs["input_ids"])
    shapes = {}

    def embed(count: int) -> torch.Tensor:
        few = {name: _rows(value, count, rows) for name, value in inputs.items()}
        with context():
            output = model(**few, micro_batch_size=None, **call)
        shapes.update(image=output["image_embeds"], text=output["text_embeds"])
        # Parameters of the loss take part as they will, so that none is without a gradient.
        scalars = [output["logit_scale"], *output.get("loss_parameters", {}).values()]
        return sum(value.float().sum() for value in (output["image_embeds"], output["text_embeds"], *scalars))

    def contrast() -> torch.Tensor:
        image, text = (
            torch.randn(*value.shape[:-2], count, value.shape[-1], device=value.device).requires_grad_()
            for value in (shapes["image"], shapes["text"])
        )
        scale = torch.tensor(10.0, device=image.device)
        with context():
            return copied(image, text, logit_scale=scale, targets=_targets(targets, count, rows)).loss

    def forget() -> None:
        for parameter in model.parameters():
            parameter.grad = None

    copied = copy.deepcopy(loss)  # one that sets itself by its first batch must not take this for it
    start, count = StepStart(model), min(rows, _LOSS_ROWS)
    try:
        embed(1).backward()  # makes the gradients, and whatever is made at first use
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        return fit_memory_model(embed, forget, contrast, contrast_rows=count, gradients=gradients)
    finally:
        start.restore(model)


def _rows(value, count: int, rows: int):
    return value[:count] if torch.is_tensor(value) and value.ndim and len(value) == rows else value


def _targets(targets: Targets, count: int, rows: int) -> Targets:
    if isinstance(targets, Mapping):
        return {name: values[:count] for name, values in targets.items()}
    if torch.is_tensor(targets) and targets.ndim == 2:
        return targets[:count, :count]
    return _rows(targets, count, rows)
