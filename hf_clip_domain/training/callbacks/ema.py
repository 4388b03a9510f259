"""An exponential moving average of the trained weights, which evaluation and the finished model use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from hf_clip_domain.errors import ClipDomainError

_FILE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """Keeps `average = d * average + (1 - d) * weight` after every optimizer step, of the parameters that train.

    With the step t from 1, `d = min(decay, (1 + t) / (10 + t))`, so that a short run is not dominated by the weights
    it began with (TensorFlow's `ExponentialMovingAverage` with `num_updates`). Costs one float32 copy of what trains,
    and a second one during evaluation. Checkpoints hold the weights, to go on from, and the average beside them; when
    training ends (with `load_best_model_at_end`: of the best checkpoint) the average takes the weights' place.

    Source: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, "Mean teachers", arXiv 1703.01780.

    Args:
        decay: of the average, from 0 to below 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, torch.Tensor] | None = None  # by name, float32, while training

    def at_step(self, step: int) -> float:
        """The decay of the step, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:  # otherwise `load` has brought the average of the checkpoint
            self.weights = {name: weight.detach().float().clone() for name, weight in _trained(model).items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        # Not on_optimizer_step: there the temperature is still to be clamped.
        rate = 1 - self.at_step(state.global_step)
        for name, weight in _trained(model).items():
            self.weights[name].lerp_(weight.float(), rate)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._put_into(model)
        self.weights = None

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model with the average as its weights; those it trains with come back afterwards."""
        if self.weights is None:
            yield
            return
        kept = {name: weight.detach().clone() for name, weight in _trained(model).items()}
        self._put_into(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in _trained(model).items():
                    weight.copy_(kept[name])

    def save(self, folder: Path) -> None:
        """Keep the average beside a checkpoint."""
        save_file({name: weight.cpu() for name, weight in self.weights.items()}, folder / _FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """Take up the average of a checkpoint.

        Raises:
            ClipDomainError: it has none, or one of other parameters.
        """
        file, trained = folder / _FILE, _trained(model)
        if not file.is_file():
            raise ClipDomainError(f"{folder} was written without --ema_decay, and has no average to go on with.")
        weights = load_file(file)
        if weights.keys() != trained.keys():
            other = sorted(weights.keys() ^ trained.keys())[0]
            raise ClipDomainError(
                f"{folder} has the average of other parameters than those that train, such as {other}."
            )
        self.weights = {name: weight.to(trained[name].device) for name, weight in weights.items()}

    @torch.no_grad()
    def _put_into(self, model: nn.Module) -> None:
        for name, weight in _trained(model).items():
            weight.copy_(self.weights[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
