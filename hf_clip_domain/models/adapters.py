"""Low-rank adapters (LoRA, DoRA) by PEFT: put on a model, saved, loaded and merged.

Every linear map of the towers' layers is adapted, attention and MLP alike: at the same number of parameters that
learns more than attention alone (Dettmers et al. 2023, arXiv 2305.14314, section 4; He et al. 2022, arXiv 2110.04366).
Rank 4 is then 0.7% of ViT-B/32 and 2.3% of the starter, in the range of CLIP-LoRA's rank 2 (Zanella and Ben Ayed 2024,
arXiv 2405.18541). Everything else is frozen but for the temperature (and SigLIP's bias).

Sources: Hu et al. 2021, "LoRA", arXiv 2106.09685; Liu et al. 2024, "DoRA", arXiv 2402.09353.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.depth import TOWERS, layer_stack
from hf_clip_domain.models.dual_encoder import find_logit_bias, find_logit_scale

RANK = 4
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors")


def add_adapter(
    model: nn.Module,
    kind: str,
    *,
    rank: int = RANK,
    alpha: float | None = None,
    dropout: float = 0.0,
    towers: str = "both",
    base_name: str | None = None,
    base_revision: str | None = None,
) -> nn.Module:
    """The model wrapped by PEFT, with adapters that change nothing yet; only they and the temperature train.

    Args:
        kind: `"lora"` or `"dora"`.
        rank: of the update of each matrix.
        alpha: the update is scaled by `alpha / rank`; default twice the rank.
        dropout: of the adapters' inputs.
        towers: `"vision"`, `"text"` or `"both"`.
        base_name: what the saved adapter names as its base model (a Hub id, an absolute path or `"starter"`).
        base_revision: its branch, tag or commit.

    Raises:
        ClipDomainError: PEFT is not installed.
    """
    peft = require("peft", extra="lora")
    from hf_clip_domain.models.adapted_model import AdaptedModel

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        use_dora=kind == "dora",
        target_modules=_targets(model, TOWERS if towers == "both" else (towers,)),
        base_model_name_or_path=base_name,
        revision=base_revision,
    )
    with warnings.catch_warnings():  # PEFT asks for an attribute that transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        adapted = AdaptedModel(model, config)
    find_logit_scale(adapted).requires_grad_(True)
    if (bias := find_logit_bias(adapted)) is not None:
        bias.requires_grad_(True)
    return adapted


def is_adapted(model: nn.Module) -> bool:
    """Whether PEFT has wrapped the model."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def save_adapted(model: nn.Module, processor: Any, folder: Path, form: str, *, write: bool = True) -> nn.Module:
    """Save a trained adapter in one of three forms, and merge it; the plain model with the adapter in its weights.

    Args:
        processor: saved beside an adapter.
        form: `"merged"`: the plain model in `folder`; `"adapter"`: PEFT's files there; `"both"`: the plain model there
            and PEFT's files in `folder/adapter`.
        write: whether this process writes; all of them merge.
    """
    if write and form != "merged":
        place = folder if form == "adapter" else folder / "adapter"
        model.save_pretrained(place)
        processor.save_pretrained(place)
    merged = model.merge_and_unload()
    if write:
        # With both kinds of files in one folder, `from_pretrained` would put the adapter on weights that hold it.
        stale = ("config.json", "model.safetensors") if form == "adapter" else ADAPTER_FILES
        for name in stale:
            (folder / name).unlink(missing_ok=True)
        if form != "adapter":
            merged.save_pretrained(folder)
    return merged


def find_adapter(name_or_path: str | Path) -> Path | None:
    """The folder, if it is one that holds an adapter and no model."""
    path = Path(name_or_path).expanduser()
    return path if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file() else None


def base_of(folder: Path) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter was trained on.

    Raises:
        ClipDomainError: PEFT is not installed, or the folder does not tell.
    """
    require("peft", extra="lora")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name = config.get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ClipDomainError(f"{folder / ADAPTER_CONFIG} is damaged: copy it again.") from error
    if not name:
        raise ClipDomainError(
            f"{folder} holds an adapter alone, whose {ADAPTER_CONFIG} names no base_model_name_or_path."
        )
    return name, config.get("revision")


def merge_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the adapter of `folder` in its weights."""
    peft = require("peft", extra="lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(model, folder).merge_and_unload()


def _targets(model: nn.Module, towers: tuple[str, ...]) -> str:
    """A pattern of the names of all linear maps in the towers' layers, which PEFT keeps in the adapter's file."""
    patterns = []
    for tower in towers:
        stack, layers = layer_stack(model, tower)
        linear = [name for name, module in layers[0].named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            other = next(name for name in TOWERS if name != tower)
            raise ClipDomainError(
                f"--lora_towers: the layers of the {tower} tower have no linear maps to adapt: give --lora_towers {other}."
            )
        patterns.append(re.escape(stack) + r"\.\d+\.(" + "|".join(map(re.escape, linear)) + ")")
    return "|".join(patterns)
