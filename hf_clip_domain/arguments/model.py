"""Which model is adapted, and how much of it trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.adapters import RANK
from hf_clip_domain.models.attention import check_slicing
from hf_clip_domain.models.freezing import check_words


@dataclass
class ModelArguments:
    """Which model to adapt."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, local folder, 'starter' (the small model shipped with the package), or 'towers' (pretrained "
            "towers from the package registry, extra 'towers'), or models:/NAME@ALIAS of an MLflow registry. Default: the "
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
    attention_slicing: str = field(
        default="auto",
        metadata={
            "help": "Compute attention in slices, with the same result, where its scores would take more than so many "
            "MiB: a number, 'auto' (a quarter of what the device has left) or 'off'."
        },
    )

    def __post_init__(self):
        self.attention_slicing = check_slicing(self.attention_slicing, "--attention_slicing")


@dataclass
class AdaptationArguments:
    """What of the model trains: everything, an adapter, or what is not frozen.

    Raises:
        ClipDomainError: values out of range, or options that exclude each other.
    """

    _argument_group_name = "adaptation"

    adapter: str = field(
        default="none",
        metadata={
            "help": "Train a low-rank adapter in place of the weights (at most 3 percent of the parameters; extra 'lora').",
            "choices": ["none", "lora", "dora"],
        },
    )
    lora_rank: int = field(default=RANK, metadata={"help": "Rank of the adapter of each matrix."})
    lora_alpha: float | None = field(
        default=None, metadata={"help": "The adapter is scaled by lora_alpha / lora_rank. Default: twice the rank."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapters' inputs."})
    lora_towers: str = field(
        default="both", metadata={"help": "Which towers get adapters.", "choices": ["vision", "text", "both"]}
    )
    save_adapter: str = field(
        default="merged",
        metadata={
            "help": "What the output folder holds: 'merged', a plain model; 'adapter', PEFT's small files, to be loaded "
            "onto the base model; 'both', a plain model and PEFT's files in adapter/.",
            "choices": ["merged", "adapter", "both"],
        },
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "What keeps its weights, one or several of: vision, text (a tower), vision:K, text:K (embeddings and "
            "the first K layers), all_but_projections, all_but_biases_and_norms, nothing. Default: nothing; with 'towers' "
            "vision text."
        },
    )

    def __post_init__(self):
        self.freeze = self.freeze.split() if isinstance(self.freeze, str) else self.freeze
        check_words(self.freeze or ())
        if self.lora_rank < 1:
            raise ClipDomainError(f"--lora_rank {self.lora_rank}: expected 1 or more.")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise ClipDomainError(f"--lora_alpha {self.lora_alpha}: expected a number above 0.")
        if not 0 <= self.lora_dropout < 1:
            raise ClipDomainError(f"--lora_dropout {self.lora_dropout}: expected a share from 0 to below 1.")
        if self.adapter != "none" and self.freeze:
            raise ClipDomainError(
                "--freeze with --adapter: an adapter freezes all else; --lora_towers says where it goes."
            )
        if self.adapter == "none" and self.save_adapter != "merged":
            raise ClipDomainError(f"--save_adapter {self.save_adapter} needs an adapter: --adapter lora or dora.")
