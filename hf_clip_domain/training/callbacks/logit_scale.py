"""Keeps the learned temperature inside the range CLIP was trained with."""

from __future__ import annotations

import math

import torch
from transformers import TrainerCallback

from hf_clip_domain.models.dual_encoder import find_logit_scale

MAX_LOGIT_SCALE = math.log(100.0)


class ClampLogitScale(TrainerCallback):
    """Clamps `logit_scale` (a logarithm) to [0, ln 100] after every optimizer step.

    Nothing in `CLIPModel` does so, and an unbounded scale ends in overflow.
    Source: Radford et al. 2021, section 2.5.
    """

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            find_logit_scale(model).clamp_(0.0, MAX_LOGIT_SCALE)
