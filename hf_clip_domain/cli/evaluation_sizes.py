"""What a run does about picture sizes: which of them it measures at its end, and whether that is worth its time."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.domains import Domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.evaluation.embedded import EmbeddedPairs
from hf_clip_domain.evaluation.resolutions import PASSES, measure_resolutions
from hf_clip_domain.models.image_sizes import image_settings, parse_sizes

AUTO = (0.5, 0.75, 1.0)  # of the model's own size
AUTO_SHARE = 0.05  # of what the training computed
TIMED_BATCH = 16
_TRAINING_PASSES = 3  # forward, and a backward that costs twice as much


def add_picture_sizes(
    report: EvaluationReport,
    training: ClipTrainingArguments,
    steps: int,
    embedded: EmbeddedPairs,
    model: nn.Module,
    processor: Any,
    domain: Domain,
) -> None:
    """Measure the trained model as `--eval_resolutions` says, into the report, or say there why not.

    A model that takes no other size costs the table and not the run, which is over.

    Args:
        steps: of the training that is over.
        embedded: the test pairs as the model embeds them at its own size.
    """
    choice = training.eval_resolutions
    if choice == "none":
        return
    if choice == "auto":
        sizes = [round(share * image_settings(processor)[0]) for share in AUTO]
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        trained = _TRAINING_PASSES * steps * batch
        if training.feature_cache is not None or auto_cost(len(embedded.rows)) > AUTO_SHARE * trained:
            report.extra.setdefault("skipped", {})["resolutions"] = (
                f"next to so short a training it would take long; --eval_resolutions {','.join(map(str, sizes))} asks for it"
            )
            return
    else:
        sizes = parse_sizes(choice, "--eval_resolutions")
    try:
        found = measure_resolutions(
            embedded,
            model,
            processor,
            domain,
            sizes,
            batch_size=training.per_device_eval_batch_size,
            timed_batch=TIMED_BATCH,
            budget=training.accuracy_budget,
        )
    except ClipDomainError as error:
        report.extra.setdefault("skipped", {})["resolutions"] = str(error)
    else:
        report.extra["resolutions"] = found.to_json()


def auto_cost(pictures: int) -> float:
    """What `auto` computes, in forward passes of a picture of the model's own size."""
    pixels = [share**2 for share in AUTO]
    scored = sum(share for share in pixels if share < 1) * pictures
    return scored + sum(pixels) * PASSES * (TIMED_BATCH + 1)
