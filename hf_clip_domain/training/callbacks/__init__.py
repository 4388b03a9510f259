"""Callbacks the trainer adds or a user can add: one idea a file."""

from hf_clip_domain.training.callbacks.ema import WeightAverage
from hf_clip_domain.training.callbacks.logit_scale import ClampLogitScale
from hf_clip_domain.training.callbacks.temperature import TemperatureSchedule

__all__ = ["ClampLogitScale", "TemperatureSchedule", "WeightAverage"]
