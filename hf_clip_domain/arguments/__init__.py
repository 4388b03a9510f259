"""What a run is told: the model, the data, the training; each a dataclass, together one `--help`."""

from hf_clip_domain.arguments.data import DataArguments
from hf_clip_domain.arguments.model import AdaptationArguments, ModelArguments
from hf_clip_domain.arguments.training import ClipTrainingArguments

STARTER = "starter"

__all__ = ["STARTER", "AdaptationArguments", "ClipTrainingArguments", "DataArguments", "ModelArguments"]
