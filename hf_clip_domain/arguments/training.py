"""How the training goes: Hugging Face's own arguments, and what contrastive training needs besides."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from hf_clip_domain.arguments.muon import check_muon
from hf_clip_domain.arguments.resolutions import SCHEDULES, check_resolutions, read_resolutions
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_sizes import parse_sizes
from hf_clip_domain.models.precision import PRECISIONS, Precision, resolve_precision
from hf_clip_domain.notification import check_target


@dataclass
class ClipTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` plus what contrastive training needs.

    HF's own names keep their meaning; `per_device_train_batch_size` is the contrastive batch a process sees.

    Changed defaults:
        dataloader_drop_last: True, since a smaller last batch is another objective (fewer negatives), and in several
            processes it would be filled up with repeated rows, which are false negatives.
        remove_unused_columns: False, since the collator needs the image column that the model never sees.
        per_device_eval_batch_size: 64. logging_steps: 10. save_total_limit: 2.

    Raises:
        ClipDomainError: a value out of range, or options that exclude each other; names them and what to do.
    """

    _argument_group_name = "training"

    micro_batch_size: str | None = field(
        default=None,
        metadata={
            "help": "Rows embedded at once, or 'auto' for what the memory affords. Bounds memory without changing the "
            "gradient of the contrastive batch; costs up to one more forward pass. Default: the whole batch. Whatever it "
            "is, a step that runs out of memory is run again with half of it."
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
    resolutions: str | None = field(
        default=None,
        metadata={
            "help": "Sizes (pixels) that the pictures of a step take as the run goes, from small to large, such as "
            "96,128,224: the last is the size of the saved model. Or 'auto' for the largest that --resolution_minutes "
            "afford. Default: the model's own size."
        },
    )
    resolution_schedule: str = field(
        default="step",
        metadata={
            "help": "How the size goes: one size (constant), each of the sizes for an equal share (step), through all "
            "sizes between two (linear, cosine), or one drawn for every step (random); the last size follows.",
            "choices": list(SCHEDULES),
        },
    )
    resolution_warmup: float = field(
        default=0.8, metadata={"help": "Share of the run after which the last size is reached."}
    )
    resolution_minutes: float = field(
        default=60.0, metadata={"help": "What the steps of a run with --resolutions auto may take."}
    )
    patch_dropout: float = field(
        default=0.0,
        metadata={"help": "Share of a picture's patches that a training step leaves out, at random (FLIP)."},
    )
    feature_cache: str | None = field(
        default=None,
        metadata={
            "help": "Keep what the frozen beginning of the vision tower gives, in this folder or 'auto' "
            "(~/.cache/hf-clip-domain/features), and train from there: later epochs open no picture. Pictures are then "
            "shown without augmentation. Default: 'off'; with 'towers' auto."
        },
    )
    feature_cache_gib: float = field(
        default=20.0, metadata={"help": "Disk budget of that folder; what does not fit is computed in every epoch."}
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
    layerwise_learning_rate_decay: float | None = field(
        default=None,
        metadata={
            "help": "Each layer learns at this share of the rate of the layer above it, in both towers; what follows the "
            "layers at the full rate. Usual: 0.65 to 0.9. Default: one rate for all."
        },
    )
    muon_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Train the matrices of the towers' layers by Muon, at so many times the learning rate, such as 16, and "
            "all else by AdamW: learns more in few steps and forgets more. Default: AdamW for all."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights, such as 0.999. Default: the weights."
        },
    )
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
    eval_resolutions: str = field(
        default="auto",
        metadata={
            "help": "Picture sizes to score and time the trained model at, such as 112,160,224; 'auto' takes half, three "
            "quarters and all of the model's own where that costs less than a twentieth of the training; or 'none'."
        },
    )
    accuracy_budget: float = field(
        default=1.0,
        metadata={
            "help": "Percentage points of mean Recall@10 that the picture size recommended for serving may lose."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better metric_for_best_model. Default: never."},
    )
    precision: str | None = field(
        default=None,
        metadata={
            "help": "auto (bf16 or fp16 where the device has it and proves faster with it), fp32, bf16 or fp16. None: as "
            "bf16 and fp16 say. The command's default is auto.",
            "choices": ["auto", *PRECISIONS],
        },
    )
    skip_device_check: bool = field(
        default=False,
        metadata={"help": "Train on MPS although the check of its operators before the run has failed."},
    )

    # Watching a run.
    monitor: bool = field(
        default=True,
        metadata={"help": "Log speed, where the time goes, memory and the machine's use with every loss."},
    )
    live_page: bool = field(
        default=False,
        metadata={"help": "Keep run.html in the output folder: the run's curves, state and events, as it goes."},
    )
    notify: str | None = field(
        default=None,
        metadata={
            "help": "Tell of start, better scores, end and failure: an http(s) address that is sent JSON, or 'command: "
            "PROGRAM ARGUMENTS', which gets it on standard input. Kept out of every file of the run."
        },
    )

    # Changed defaults, same order as in TrainingArguments.
    per_device_train_batch_size: str = field(
        default=8,
        metadata={
            "help": "The contrastive batch: pairs that a process contrasts at once, or 'auto' for one that suits the number "
            "of pairs and the memory."
        },
    )
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
        batch = _rows("per_device_train_batch_size", self.per_device_train_batch_size)
        # Until the number of pairs is known, a number of Hugging Face's kind must stand here.
        self.choose_batch_size = batch == "auto"
        self.per_device_train_batch_size = 8 if self.choose_batch_size else batch
        flags = {"bf16": self.bf16, "fp16": self.fp16}
        if self.precision is not None:  # taken up again below, when the device and the other processes are known
            self.bf16 = self.fp16 = False
        super().__post_init__()
        self.micro_batch_size = _rows("micro_batch_size", self.micro_batch_size)
        if self.precision is not None:
            launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
            run = Path(self.output_dir)
            self.use_precision(resolve_precision(self.precision, self.device, **flags, launcher=launcher, run=run))
        self.loss_settings = _mapping(self.loss_settings, "--loss_settings")
        if self.feature_cache == "off":
            self.feature_cache = None
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
        if self.layerwise_learning_rate_decay is not None and not 0 < self.layerwise_learning_rate_decay <= 1:
            raise ClipDomainError(
                f"--layerwise_learning_rate_decay {self.layerwise_learning_rate_decay}: expected a share above 0, at most 1."
            )
        check_muon(self)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ClipDomainError(f"--ema_decay {self.ema_decay}: expected a share from 0 to below 1, such as 0.999.")
        if (self.activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ClipDomainError(
                "--gradient_checkpointing_kwargs: with use_reentrant true, adapters and what lies above frozen layers get no "
                "gradient; leave it out."
            )
        for name in ("auto_tune_minutes", "auto_tune_trials", "auto_tune_epochs"):
            if getattr(self, name) <= 0:
                raise ClipDomainError(f"--{name} {getattr(self, name)}: expected a number above 0.")
        if self.image_sizes is not None and (not self.image_sizes or min(self.image_sizes) < 1):
            raise ClipDomainError(f"--image_sizes {self.image_sizes}: expected one or more sizes in pixels.")
        self.resolutions = read_resolutions(self.resolutions)
        check_resolutions(self)
        if not self.feature_cache_gib > 0:
            raise ClipDomainError(f"--feature_cache_gib {self.feature_cache_gib}: expected a number above 0.")
        if self.feature_cache is not None and self.image_sizes is not None:
            raise ClipDomainError(
                "--feature_cache keeps features of pictures at the model's own size: leave out --image_sizes or the cache."
            )
        if not self.forgetting_budget >= 0:
            raise ClipDomainError(
                f"--forgetting_budget {self.forgetting_budget}: expected points of recall, 0 or more."
            )
        if self.eval_resolutions not in ("auto", "none"):
            parse_sizes(self.eval_resolutions, "--eval_resolutions")
        if not self.accuracy_budget >= 0:
            raise ClipDomainError(f"--accuracy_budget {self.accuracy_budget}: expected points of recall, 0 or more.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ClipDomainError(f"--early_stopping_patience {self.early_stopping_patience}: expected 1 or more.")
        if self.notify is not None:
            check_target(self.notify)

    # A notification's address is often a secret: it is in nothing that is written, logged or uploaded.

    def to_dict(self):
        return super().to_dict() | {"notify": None}

    def __getstate__(self):
        return self.__dict__ | {"notify": None}

    def use_precision(self, choice: Precision) -> None:
        """Set Hugging Face's flags, and what the Trainer hands to accelerate, to the choice."""
        self.precision, self.precision_choice = choice.name, choice
        self.bf16, self.fp16 = choice.name == "bf16", choice.name == "fp16"
        self.mixed_precision = "no" if choice.name == "fp32" else choice.name


def _rows(name: str, value: int | str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    if not str(value).isdecimal() or int(value) < 1:
        raise ClipDomainError(f"--{name} {value}: expected a positive number of rows, or auto.")
    return int(value)


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
