"""What a run is told: the model, the data, the training; each a dataclass, together one `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml
from transformers import TrainingArguments

from hf_clip_domain.errors import ClipDomainError

STARTER = "starter"


@dataclass
class ModelArguments:
    """Which model to adapt."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, local folder, or 'starter' (the small model shipped with the package). Default: the "
            "domain's base model with --dataset, 'starter' without."
        },
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    max_text_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest caption in tokens. More than the model's own (77 for CLIP) stretches its position table, "
            "keeping the first 20 positions (Long-CLIP); 248 is the usual choice."
        },
    )


@dataclass
class DataArguments:
    """Which pairs to learn from, and how to read them."""

    _argument_group_name = "data"

    domain: str = field(
        default="general", metadata={"help": "medical, industrial, scientific, general, or the path of a YAML file."}
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, JSON, JSONL, Parquet, a folder of pictures with captions, WebDataset shards, or a Hub "
            "id. Default: the domain's embedded synthetic samples."
        },
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the picture, when not found by name."})
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the caption(s), when not found by name."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the class label, if any."})
    group_column: str | None = field(
        default=None, metadata={"help": "Column whose equal values (patient, document) never straddle two splits."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read rows as they come; for data larger than memory."})
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of the data held out for choosing the best checkpoint, if no split is given."},
    )
    test_fraction: float = field(
        default=0.1, metadata={"help": "Share of the data held out for the final scores, if no split is given."}
    )
    max_bad_fraction: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the rows had to be set aside."}
    )
    captions: str = field(
        default="truncate",
        metadata={
            "help": "Captions longer than the model reads: 'truncate' them, or learn from one random 'sentence' of the "
            "caption an epoch.",
            "choices": ["truncate", "sentence"],
        },
    )
    probe_dataset: str = field(
        default="samples",
        metadata={
            "help": "General pairs on which forgetting is measured at every evaluation: as for --dataset, 'samples' for "
            "the embedded general ones (synthetic), or 'none'."
        },
    )
    probe_domain: str = field(
        default="general", metadata={"help": "Domain by which the probe's pictures and texts are treated."}
    )
    probe_rows: int = field(
        default=500, metadata={"help": "Most rows of the probe in training, and most before and after."}
    )

    replay_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training rows that are general pairs, taken from the probe's source and none of those it "
            "is scored on, so that less is forgotten. 0.25 makes a run a third longer. Default: none."
        },
    )

    def __post_init__(self):
        for name in ("validation_fraction", "test_fraction", "max_bad_fraction", "replay_fraction"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ClipDomainError(f"--{name} {value}: expected a share from 0 to below 1, such as 0.1.")
        if self.probe_rows < 1:
            raise ClipDomainError(
                f"--probe_rows {self.probe_rows}: expected 1 or more ('--probe_dataset none' for none)."
            )


@dataclass
class ClipTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` plus what contrastive training needs.

    HF's own names keep their meaning; `per_device_train_batch_size` is the contrastive batch a process sees.

    Changed defaults:
        dataloader_drop_last: True, since a smaller last batch is another objective (fewer negatives), and in several
            processes it would be filled up with repeated rows, which are false negatives.
        remove_unused_columns: False, since the collator needs the image column that the model never sees.
        per_device_eval_batch_size: 64. logging_steps: 10. save_total_limit: 2.
    """

    _argument_group_name = "training"

    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows embedded at once. Bounds memory without changing the gradient of the contrastive batch; costs "
            "one more forward pass. Default: the whole batch."
        },
    )
    loss: str = field(
        default="info_nce", metadata={"help": "info_nce, siglip, sum (of several), or package.module:Class."}
    )
    loss_settings: dict | str | None = field(
        default=None,
        metadata={
            "help": "Settings of the loss as YAML or JSON, such as '{positives: {caption: 1, label: 0.5}, negatives: "
            "{kind: hard, ratio: 0.25}}'. Default: the domain's."
        },
    )
    loss_learning_rate: float = field(
        default=1e-2,
        metadata={"help": "Learning rate of the loss's own parameters (bias, learned weights or similarity), if any."},
    )
    image_sizes: list[int] | None = field(
        default=None,
        metadata={
            "help": "Embed the same pictures at each of these sizes (pixels) in every step, and sum the losses. Default: "
            "the model's own size."
        },
    )
    temperature_schedule: str = field(
        default="learned",
        metadata={
            "help": "How logit_scale = 1 / temperature goes: learned (clamped to 1..100) or driven by the run.",
            "choices": ["learned", "fixed", "constant", "warmup", "cosine", "exponential", "adaptive"],
        },
    )
    temperature: float | None = field(
        default=None, metadata={"help": "First temperature, from 0.01 to 1. Default: the model's own."}
    )
    final_temperature: float = field(
        default=0.02, metadata={"help": "Last temperature of warmup, cosine and exponential, from 0.01 to 1."}
    )
    temperature_warmup: float = field(
        default=0.1, metadata={"help": "Share of the run after which warmup has reached the final temperature."}
    )
    temperature_gap: float = field(
        default=5.0, metadata={"help": "Logits between positives and negatives that adaptive aims at."}
    )
    auto_tune_loss: bool = field(
        default=False,
        metadata={"help": "Search the loss's settings by short runs on the validation split first (extra 'tune')."},
    )
    auto_tune_minutes: float = field(default=10.0, metadata={"help": "Budget of the search in minutes."})
    auto_tune_trials: int = field(default=20, metadata={"help": "Short runs at most."})
    auto_tune_epochs: float = field(default=2.0, metadata={"help": "Epochs of each."})
    wise_ft: bool = field(
        default=False,
        metadata={
            "help": "After training, interpolate the weights between base and tuned model, and save the best for the "
            "domain within --forgetting_budget (WiSE-FT); both are judged on validation splits."
        },
    )
    forgetting_budget: float = field(
        default=1.5,
        metadata={
            "help": "Percentage points of the probe's mean Recall@10 (of both directions) that --wise_ft may give up "
            "against the base model."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better metric_for_best_model. Default: never."},
    )

    # Changed defaults, same order as in TrainingArguments.
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows embedded at once in evaluation."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps (below 1: share of the run)."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Leave out the last, smaller batch: its objective would differ."}
    )
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Drop columns that neither the model nor the collator names."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ClipDomainError(f"--micro_batch_size {self.micro_batch_size}: expected a positive number of rows.")
        self.loss_settings = _mapping(self.loss_settings, "--loss_settings")
        for name in ("temperature", "final_temperature"):
            value = getattr(self, name)
            if value is not None and not 0.01 <= value <= 1:
                raise ClipDomainError(f"--{name} {value}: expected a number from 0.01 to 1 (logit_scale 100 to 1).")
        if self.temperature_schedule == "constant" and self.temperature is None:
            raise ClipDomainError("--temperature_schedule constant needs --temperature; 'fixed' keeps the model's own.")
        if self.temperature_schedule == "fixed" and self.temperature is not None:
            raise ClipDomainError("--temperature_schedule fixed keeps the model's own; 'constant' takes --temperature.")
        if not 0 < self.temperature_warmup <= 1:
            raise ClipDomainError(
                f"--temperature_warmup {self.temperature_warmup}: expected a share above 0, at most 1."
            )
        if self.temperature_gap <= 0:
            raise ClipDomainError(f"--temperature_gap {self.temperature_gap}: expected a number of logits above 0.")
        if not self.loss_learning_rate > 0:
            raise ClipDomainError(f"--loss_learning_rate {self.loss_learning_rate}: expected a number above 0.")
        for name in ("auto_tune_minutes", "auto_tune_trials", "auto_tune_epochs"):
            if getattr(self, name) <= 0:
                raise ClipDomainError(f"--{name} {getattr(self, name)}: expected a number above 0.")
        if self.image_sizes is not None and (not self.image_sizes or min(self.image_sizes) < 1):
            raise ClipDomainError(f"--image_sizes {self.image_sizes}: expected one or more sizes in pixels.")
        if not self.forgetting_budget >= 0:
            raise ClipDomainError(
                f"--forgetting_budget {self.forgetting_budget}: expected points of recall, 0 or more."
            )
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ClipDomainError(f"--early_stopping_patience {self.early_stopping_patience}: expected 1 or more.")


def _mapping(value: Any, option: str) -> dict[str, Any] | None:
    """A mapping, also when it stands in a string as YAML or JSON."""
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ClipDomainError(f"{option} is not valid YAML: {' '.join(str(error).split())}") from error
    if value is not None and not isinstance(value, dict):
        raise ClipDomainError(f"{option} {value!r}: expected `setting: value`, such as '{{label_smoothing: 0.1}}'.")
    return value
