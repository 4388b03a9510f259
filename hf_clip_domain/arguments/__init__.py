"""What a run is told: the model, the data, the training; each a dataclass, together one `--help`."""

from hf_clip_domain.arguments.data import DataArguments
from hf_clip_domain.arguments.model import AdaptationArguments, ModelArguments
from hf_clip_domain.arguments.training import ClipTrainingArguments

STARTER, TOWERS = "starter", "towers"

__all__ = ["STARTER", "TOWERS", "AdaptationArguments", "ClipTrainingArguments", "DataArguments", "ModelArguments"]
