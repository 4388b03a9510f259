"""The temperature of the softmax during training: learned within bounds, or driven by the progress of the run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.dual_encoder import find_logit_scale
from hf_clip_domain.training.callbacks.logit_scale import MAX_LOGIT_SCALE, ClampLogitScale

# Share by which an adaptive temperature moves towards its goal each step.
_ADAPTIVE_RATE = 0.05


def temperature_callback(
    args: ClipTrainingArguments, model: nn.Module, similarity_gap: Callable[[], torch.Tensor]
) -> TrainerCallback:
    """The callback that keeps `args.temperature_schedule`; `args.temperature` is set at once."""
    if args.temperature is not None:
        set_temperature(model, args.temperature)
    if args.temperature_schedule == "learned":
        return ClampLogitScale()
    return TemperatureSchedule(args, model, similarity_gap)


class TemperatureSchedule(TrainerCallback):
    """Sets `logit_scale` (the logarithm of 1 / temperature) for every step, and takes it from the optimizer.

    With T from `temperature` (default: the model's own) to `final_temperature` and the progress p from 0 to 1:
        fixed: the model's own, unchanged. constant: `temperature`.
        warmup: from the first to the final in a straight line over the first `temperature_warmup` of the run.
        cosine: `T = final + (first - final) * (1 + cos(pi p)) / 2` (as Kukleva et al. 2023, "Temperature Schedules
            for Self-Supervised Contrastive Methods on Long-Tail Data", equation 3, over half a period).
        exponential: `T = first * (final / first) ** p`.
        adaptive: towards the T at which a batch's positives lie `temperature_gap` logits above its negatives, a
            twentieth of the way (in the logarithm) each step.

    Nothing but the step and the weights decides, so a resumed run goes on as the uninterrupted one.

    Args:
        args: the fields named above.
        model: before any step of the run, also of a run that is resumed.
        similarity_gap: of the last step, for "adaptive".

    Raises:
        ClipDomainError: at the end of a step, "adaptive" with a loss that does not tell the gap.
    """

    def __init__(
        self, args: ClipTrainingArguments, model: nn.Module, similarity_gap: Callable[[], torch.Tensor]
    ) -> None:
        self.kind, self.final, self.warmup = args.temperature_schedule, args.final_temperature, args.temperature_warmup
        self.gap, self.similarity_gap = args.temperature_gap, similarity_gap
        scale = find_logit_scale(model).requires_grad_(False)
        self.first = math.exp(-scale.item())

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.kind != "adaptive":
            _set(find_logit_scale(model), -math.log(self.temperature(state.global_step / max(1, state.max_steps))))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.kind == "adaptive":
            scale, gap = find_logit_scale(model), self.similarity_gap()
            if gap is None:
                raise ClipDomainError(
                    "--temperature_schedule adaptive follows the similarity gap, which this loss does not tell: return "
                    "it in LossOutput.parts as 'similarity_gap', or choose another schedule."
                )
            if (gap := float(gap)) > 0:
                _set(scale, scale.item() + _ADAPTIVE_RATE * (math.log(self.gap / gap) - scale.item()))

    def temperature(self, progress: float) -> float:
        """The temperature at a share of the run from 0 to 1."""
        if self.kind in ("fixed", "constant"):
            return self.first
        if self.kind == "warmup":
            return self.first + (self.final - self.first) * min(1.0, progress / self.warmup)
        if self.kind == "cosine":
            return self.final + (self.first - self.final) * (1 + math.cos(math.pi * progress)) / 2
        return self.first * (self.final / self.first) ** progress


def set_temperature(model: nn.Module, temperature: float) -> None:
    """The model's `logit_scale` as the logarithm of 1 / temperature."""
    _set(find_logit_scale(model), -math.log(temperature))


def _set(logit_scale: torch.nn.Parameter, value: float) -> None:
    with torch.no_grad():
        logit_scale.fill_(min(max(value, 0.0), MAX_LOGIT_SCALE))
