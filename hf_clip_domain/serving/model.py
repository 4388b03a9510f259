"""A model as the server holds it: its halves for batches, what it is known by, and what it must pass before it serves."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hf_clip_domain import __version__
from hf_clip_domain.device import find_device
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.dual_encoder import features, find_logit_scale, text_padding
from hf_clip_domain.models.exported.base import ExportedModel
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.precision import DTYPES
from hf_clip_domain.serving.centre import Centre, read_centre
from hf_clip_domain.serving.registry import resolve
from hf_clip_domain.similarity import wants_normalised

TEXT, IMAGE = "text", "image"


@dataclass(frozen=True)
class Kernels:
    """How a model computes.

    Attributes:
        precision: `fp32`, `bf16` or `fp16`: of weights and activations; embeddings are always given as float32.
        channels_last: memory layout of pictures.
        compiled: by `torch.compile`, for any batch size.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False


class LoadedModel:
    """A `ClipEmbedder` ready to serve; nothing of it changes after loading.

    Args:
        embedder: on its device.
        source: what it was loaded from.
        version: the registry's, where it came from there.
    """

    def __init__(self, embedder: ClipEmbedder, *, source: str, version: str | None = None) -> None:
        self.embedder, self.source, self.version = embedder, source, version
        self.loaded_at = time.time()
        self.device = next(embedder.model.parameters()).device
        self.index: Any = None  # of the gallery, embedded by this model
        self.centre: Centre | None = None  # by which pairs are centred for statistics
        self.notes: list[str] = []  # how the kernels were chosen
        embedder.model.eval().requires_grad_(False)
        self.weights = fingerprint(embedder.model)
        # The multiplier of similarities before the softmax, the calibrated one where there is one; not rounded to bf16.
        self.logit_scale = float(embedder.logit_scale or find_logit_scale(embedder.model).detach().float().exp())
        on_the_right = embedder.processor.tokenizer.padding_side == "right"
        self._pads_at_will = text_padding(embedder.model) == "longest" and on_the_right
        self.use(Kernels())

    @classmethod
    def load(cls, name: str, *, device: str | None = None) -> LoadedModel:
        """Load from a folder, the Hub, the package or a registry.

        Raises:
            ClipDomainError: it cannot be found, read, or is no dual encoder.
        """
        found = resolve(name)
        embedder = ClipEmbedder.from_pretrained(found.path, device=find_device(device), attention_slicing="off")
        model = cls(embedder, source=name, version=found.version)
        model.centre = read_centre(found.path, model.weights)
        return model

    def use(self, kernels: Kernels) -> None:
        """Compute in this way from now on; before serving, since requests' keys depend on it."""
        model = self.embedder.model
        if kernels.precision != "fp32":
            model = copy.deepcopy(model).to(DTYPES[kernels.precision])
        self.kernels, self._dtype = kernels, next(model.parameters()).dtype
        self._image_features, self._text_features = model.get_image_features, model.get_text_features
        if kernels.compiled:
            self._image_features = torch.compile(self._image_features, dynamic=True)
            self._text_features = torch.compile(self._text_features, dynamic=True)
        # Even lengths spare accelerators and compilers new shapes; a CPU gains nothing by them.
        self._exact_lengths = self.device.type == "cpu" and not kernels.compiled and self._pads_at_will
        self.__dict__.pop("identity", None)

    @cached_property
    def dimensions(self) -> int:
        """Of an embedding."""
        return self.encode_texts(self.token_ids(["a"])).shape[1]

    @cached_property
    def identity(self) -> bytes:
        """32 bytes that differ wherever an embedding could: weights, configuration, preprocessing, precision."""
        embedder = self.embedder
        parts = {
            "weights": self.weights,
            "config": embedder.model.config.to_json_string(),
            "tokenizer": _hash_tokenizer(embedder.processor.tokenizer),
            "images": embedder.processor.image_processor.to_json_string(),
            "domain": embedder.domain.to_dict() if embedder.domain is not None else None,
            "pixels": embedder.picture_settings,
            "normalised": self.normalised,
            "capacity": embedder._capacity,
            "precision": self.precision,
            "package": __version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest()

    @property
    def export(self) -> ExportedModel | None:
        """The model, if it is one that another library than torch computes."""
        return self.embedder.model if isinstance(self.embedder.model, ExportedModel) else None

    @property
    def precision(self) -> str:
        """`fp32`, `bf16`, `fp16`, or `int8` of an export."""
        if self.export is not None and self.export.record.precision != "float32":
            return self.export.record.precision
        return self.kernels.precision

    @property
    def resolution(self) -> int:
        """Side in pixels of the square it sees."""
        return image_settings(self.embedder.processor)[0]

    @property
    def normalised(self) -> bool:
        """Whether embeddings have length 1."""
        return wants_normalised(self.embedder.similarity_function)

    def describe(self) -> dict[str, Any]:
        """For people and dashboards."""
        return {
            "source": self.source,
            "version": self.version,
            "revision": self.identity.hex()[:16],
            "kind": self.embedder.model.config.model_type,
            "domain": self.embedder.domain.name if self.embedder.domain is not None else None,
            "dimensions": self.dimensions,
            "device": str(self.device),
            "precision": self.precision,
            "kernels": self.notes,
            "loaded_at": self.loaded_at,
        }

    # What requests bring, prepared outside the engine; safe in several threads.

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Cleaned, tokenised and cut as offline; not padded."""
        return self.embedder.token_ids(list(texts))

    def padded_length(self, ids: list[int]) -> int:
        """Length at which `encode_texts` would run these tokens alone."""
        if self._exact_lengths:
            return len(ids)
        return min(-(-len(ids) // 8) * 8, self.embedder._capacity) if self._pads_at_will else self.embedder._capacity

    def pixels(self, picture: bytes) -> torch.Tensor:
        """A picture's bytes as the model's input, `(3, h, w)` float32."""
        return self.embedder.pixels(0, picture)

    # The engine's part; one thread.

    def encode(self, kind: str, payloads: Sequence[Any]) -> np.ndarray:
        """Prepared texts or pictures to embeddings `(b, d)` float32."""
        return self.encode_texts(payloads) if kind == TEXT else self.encode_images(payloads)

    @torch.inference_mode()
    def encode_texts(self, ids: Sequence[list[int]]) -> np.ndarray:
        """`(b, d)` float32."""
        inputs = self.embedder.padded(list(ids))
        if self._exact_lengths:
            longest = max(map(len, ids))
            inputs = {name: tensor[:, :longest] for name, tensor in inputs.items()}
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        return self._finish(features(self._text_features(**inputs)))

    @torch.inference_mode()
    def encode_images(self, pixels: Sequence[torch.Tensor]) -> np.ndarray:
        """`(b, d)` float32."""
        batch = torch.stack(list(pixels))  # (b, 3, h, w)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, self._dtype, non_blocking=True)
        if self.kernels.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        return self._finish(features(self._image_features(pixel_values=batch)))

    def _finish(self, embeds: torch.Tensor) -> np.ndarray:
        """Rows that are not finite stay so: each is refused by itself, see `Engine`."""
        embeds = embeds.float().cpu()
        return (F.normalize(embeds, dim=-1) if self.normalised else embeds).numpy()


def _hash_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    parts = {name: part for name, part in parts.items() if name not in ("truncation", "padding")}  # of the last call
    return hashlib.sha256(json.dumps([parts, type(tokenizer).__name__], sort_keys=True).encode()).hexdigest()
