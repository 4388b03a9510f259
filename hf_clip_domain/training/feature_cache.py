"""Training from kept features of a frozen vision tower: computed once a picture, then read from disk.

The dataset leaves out the pixels of pictures whose features are stored (its workers look that up); here the batch's
features are read, those that are missing are computed and stored, and the model receives features in place of pixels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from hf_clip_domain import __version__
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.data.cached_rows import PictureRefs
from hf_clip_domain.data.feature_store import FeatureStore, open_store
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.prefix import FrozenPrefix, find_frozen_prefix

logger = logging.get_logger(__name__)

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class FeatureCache(TrainerCallback):
    """Fills batches with the features of their pictures.

    A feature is found by the SHA-256 of its picture's file, in a store of its own for every preprocessing, frozen
    weights, precision and version of the libraries. When the frozen weights change or thaw during a run, another
    store is used from the next batch on, or none.

    Args:
        args: `feature_cache` and `feature_cache_gib` are used.
        model: to be trained; what is frozen is seen by `requires_grad`.
        dataset: a `PairDataset`; it shows its pictures without augmentation from here on.
        accelerator: its autocast and device.

    Raises:
        ClipDomainError: nothing to keep (no frozen stage, or a tower that is not known), a dataset whose rows are not
            numbered, or weights that are spread over processes.
    """

    def __init__(self, args: ClipTrainingArguments, model: nn.Module, dataset: Any, accelerator: Accelerator) -> None:
        if not hasattr(dataset, "use_features"):
            raise ClipDomainError(
                f"--feature_cache needs the rows of a PairDataset, found {type(dataset).__name__}: leave out --streaming, "
                "or the cache."
            )
        if find_frozen_prefix(model) is None:
            raise ClipDomainError(
                "--feature_cache keeps what frozen layers give, and the vision tower does not begin with any (known are "
                "CLIP's and SigLIP's towers, without dropout, and the whole of EfficientNet-Lite): freeze its embeddings at "
                "least (of 'towers' all of vision), or leave out the cache."
            )
        if accelerator.distributed_type in _SHARDED:
            raise ClipDomainError(
                f"--feature_cache computes with whole weights; {accelerator.distributed_type.value} spreads them over "
                "processes: leave out one of the two."
            )
        self.args, self.dataset, self.accelerator = args, dataset, accelerator
        self.root = _folder(args.feature_cache)
        self.prefix: FrozenPrefix | None = None
        self.store: FeatureStore | None = None
        self._marks: tuple[Any, ...] = ()
        dataset.use_features(None)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # Here, not before: the checkpoint is loaded, and no dataloader worker has been started.
        self._open(model)
        if state.is_world_process_zero and self.prefix is not None:
            logger.warning(
                f"Feature cache in {self.root}: {self.prefix.describe()}, of {len(self.store):,} pictures so far. Pictures "
                "are shown without augmentation."
            )

    def fill(self, model: nn.Module, inputs: dict[str, Any], micro_batch_size: int | None = None) -> dict[str, Any]:
        """Inputs in which `image_features` (n, ...) and their `image_suffix` take the place of `pictures` and pixels.

        Args:
            model: not wrapped for data parallel training.
            inputs: a batch of `PairCollator`.
            micro_batch_size: pictures whose features are computed at once; `None` for all that are missing.
        """
        inputs = dict(inputs)
        refs: PictureRefs = inputs.pop("pictures")
        pixels = dict(zip(refs.shown, inputs.pop("pixel_values", ()), strict=True))
        if self.prefix is not None and self.prefix.marks() != self._marks:
            self._open(model)
        if self.prefix is None:  # all has thawed
            everything, _ = self._pixels(refs, list(range(len(refs.keys))), pixels)
            return {**inputs, "pixel_values": everything}
        values, found = self.store.get(refs.keys)
        missing = [place for place, there in enumerate(found) if not there]
        if missing:
            shown, keys = self._pixels(refs, missing, pixels)
            computed = self._compute(shown, micro_batch_size).to(values.device)
            values[missing] = computed
            self.store.put(keys, computed)
        features = values.to(self.accelerator.device, non_blocking=True)
        return {**inputs, "image_features": features, "image_suffix": self.prefix.suffix}

    def _open(self, model: nn.Module) -> None:
        """Take the store that belongs to the model's frozen weights as they are now."""
        self.prefix, self.store = find_frozen_prefix(model), None
        if self.prefix is None:
            logger.warning("Feature cache: nothing of the vision tower is frozen any more; pictures are read again.")
        else:
            self._marks = self.prefix.marks()
            size = self.dataset.picture_settings["size"]
            sample = self._compute(torch.zeros(1, 3, size, size, device=self.accelerator.device))
            budget = int(self.args.feature_cache_gib * 2**30)
            self.store = open_store(
                self.root, self._identity(), sample.shape[1:], sample.dtype, budget=budget, rows=len(self.dataset)
            )
        self.dataset.use_features(self.store)

    def _identity(self) -> dict[str, Any]:
        """All besides the picture's file that decides a feature."""
        device = self.accelerator.device.type
        with self.accelerator.autocast():
            autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        return {
            "weights": self.prefix.fingerprint(),
            "pictures": repr(sorted(self.dataset.picture_settings.items())),
            "precision": [device, autocast, torch.get_float32_matmul_precision()],
            "versions": [__version__, torch.__version__, transformers.__version__, PIL.__version__],
        }

    def _compute(self, pixels: torch.Tensor, micro_batch_size: int | None = None) -> torch.Tensor:
        """Features of `(m, 3, h, w)`, a micro-batch at a time, as the run's precision gives them."""
        with self.accelerator.autocast():
            parts = [self.prefix.prefix(part) for part in pixels.split(micro_batch_size or len(pixels))]
        return torch.cat(parts)

    def _pixels(
        self, refs: PictureRefs, places: list[int], pixels: dict[int, torch.Tensor]
    ) -> tuple[torch.Tensor, list[bytes]]:
        """Pixels of these places of the batch and the keys they belong to; what did not come along is read here.

        That happens when a row was stored as its worker looked and cannot be read now, or belongs to older weights.
        """
        keys, shown = [], []
        for place in places:
            key, picture = refs.keys[place], pixels.get(place)
            if picture is None:
                key, picture = self.dataset.show(refs.rows[place])
            keys.append(key)
            shown.append(picture.to(self.accelerator.device))
        return torch.stack(shown), keys


def _folder(option: str) -> Path:
    if option != "auto":
        return Path(option).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf-clip-domain" / "features"
