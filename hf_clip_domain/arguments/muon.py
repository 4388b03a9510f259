"""What Muon goes with: AdamW for all that it does not train, and weights that no process holds in parts."""

from __future__ import annotations

import os

from transformers import TrainingArguments

from hf_clip_domain.errors import ClipDomainError

OPTIMIZERS_BESIDE = ("adamw_torch", "adamw_torch_fused")


def weights_are_divided() -> bool:
    """Whether the launcher has FSDP or DeepSpeed divide the weights among the processes."""
    return any(os.environ.get(f"ACCELERATE_USE_{way}") == "true" for way in ("FSDP", "DEEPSPEED"))


def check_muon(args: TrainingArguments) -> None:
    """Refuse a ratio that is none, or that goes with nothing else that was chosen.

    Raises:
        ClipDomainError: names the options and what to do.
    """
    if args.muon_ratio is None:
        return
    if not args.muon_ratio > 0:
        raise ClipDomainError(f"--muon_ratio {args.muon_ratio}: expected a number above 0, such as 16.")
    optim = getattr(args.optim, "value", args.optim)
    if optim not in OPTIMIZERS_BESIDE:
        raise ClipDomainError(f"--muon_ratio goes with AdamW for all else, not with --optim {optim}: leave one out.")
    if args.fsdp or args.deepspeed or weights_are_divided():
        raise ClipDomainError("--muon_ratio needs whole matrices, which FSDP and DeepSpeed divide: leave it out.")
