"""The one route from pictures and texts to embeddings: evaluation, serving, export and users all go through
here."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import Domain, load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.beside import CALIBRATION_FILE, file_beside, similarity_beside
from hf_clip_domain.models.dual_encoder import features, find_logit_scale, text_padding
from hf_clip_domain.models.exported.loading import load_encoder
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.similarity import SimilarityFunction, build_similarity, wants_normalised, without_gradient

GENERIC_PROMPTS = ("a photo of {}.", "a picture of {}.", "an image showing {}.", "{}")


class ClipEmbedder:
    """Embeds pictures and texts with a `CLIPModel`, `SiglipModel`, `VisionTextDualEncoderModel` or their like.

    Args:
        model: the model; used where it is, its train/eval mode is restored after every call.
        processor: its processor (`image_processor` and `tokenizer`).
        domain: when given, pictures go through the domain's `ImageTransform.evaluation` and texts through
            `clean_caption`, as in training; otherwise through the processor alone.
        batch_size: pictures or texts a forward pass; bounds memory (two batches of pictures are held).
        device: where to compute; the model is moved there. Default: where the model is.
        similarity: name, dotted path or function, see `build_similarity`.
        logit_scale: the multiplier of similarities in `classify`, such as one fitted for calibrated probabilities;
            default: the model's.

    What cannot be used (settings, pictures, texts) raises `ClipDomainError`.

    ```python
    embedder = ClipEmbedder.from_pretrained("outputs/my-model")
    scores = embedder.similarity(["scan.png"], ["no fracture", "a fracture of the radius"])  # (1, 2)
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        domain: Domain | None = None,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        similarity: str | SimilarityFunction = "cosine",
        logit_scale: float | None = None,
    ) -> None:
        if batch_size < 1:
            raise ClipDomainError(f"batch_size is {batch_size}; expected at least 1.")
        self.model = unwrap(model)
        if device is not None:
            self.model.to(device)
        self.processor = processor
        self.domain = domain
        self.batch_size = batch_size
        self.similarity_function = without_gradient(build_similarity(similarity))
        self.logit_scale = logit_scale
        self._normalise = wants_normalised(self.similarity_function)
        self._transform = ImageTransform(domain, *image_settings(processor)) if domain is not None else None
        # What decides a picture's pixels; without a domain the processor does.
        self.picture_settings = self._transform.settings if self._transform is not None else None

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, domain: Domain | str | Path | None = None, **options: Any
    ) -> ClipEmbedder:
        """Load model, processor and, where they lie beside the weights, domain, similarity and calibration.

        Args:
            name_or_path: local folder (of a model, an adapter or an export), Hub id, `"starter"` or `"towers"`.
            domain: overrides the folder's domain (a `Domain`, a name or a YAML file).
            options: `attention_slicing` and `threads` (see `load_encoder`), and the constructor's other arguments.

        Raises:
            ClipDomainError: the model cannot be loaded.
        """
        loading = {name: options.pop(name) for name in ("attention_slicing", "threads") if name in options}
        model, processor = load_encoder(str(name_or_path), **loading)
        if domain is None:
            domain = file_beside(str(name_or_path), model, "domain.yaml")
        options.setdefault("similarity", similarity_beside(str(name_or_path), model))
        if "logit_scale" not in options and (file := file_beside(str(name_or_path), model, CALIBRATION_FILE)):
            options["logit_scale"] = json.loads(file.read_text(encoding="utf-8"))["logit_scale"]
        if domain is not None and not isinstance(domain, Domain):
            domain = load_domain(domain)
        return cls(model, processor, domain=domain, **options)

    def embed_images(self, images: Iterable[Any], progress: bool | None = None) -> torch.Tensor:
        """Embed pictures: `-> (n, d)` float32 on the CPU, L2-normalised (unless the similarity says otherwise).

        Args:
            images: paths, bytes, PIL images, arrays, rows `{"bytes", "path"}` or a datasets column; read lazily.
            progress: a bar on standard error; by default only when it takes longer than two seconds.

        Raises:
            ClipDomainError: a picture cannot be read (named by its position), or an embedding is not finite.
        """
        images = [images] if _is_one_image(images) else images
        embeds = []
        bar = _bar(images, "images", progress)
        with bar, inference(self.model):
            for pixels in self._pixel_batches(images):  # (b, 3, h, w)
                pixels = pixels.to(self._device, self._dtype)
                embeds.append(features(self.model.get_image_features(pixel_values=pixels)).float().cpu())
                bar.update(len(pixels))
        return self.finish(embeds, "image")

    def embed_texts(self, texts: Iterable[str], progress: bool | None = None) -> torch.Tensor:
        """Embed texts: `-> (m, d)` float32 on the CPU, L2-normalised (unless the similarity says otherwise).

        Texts are sorted by length so that short ones are padded little; the order returned is that given.
        Longer texts than the model can take are cut, keeping the end token.

        Raises:
            ClipDomainError: a text is not a string, or an embedding is not finite.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = self.token_ids(texts)
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        embeds = []
        bar = _bar(texts, "texts", progress)
        with bar, inference(self.model):
            for start in range(0, len(order), self.batch_size):
                batch = [ids[index] for index in order[start : start + self.batch_size]]
                inputs = {name: tensor.to(self._device) for name, tensor in self.padded(batch).items()}
                embeds.append(features(self.model.get_text_features(**inputs)).float().cpu())
                bar.update(len(batch))
        sorted_embeds = self.finish(embeds, "text")
        restored = torch.empty_like(sorted_embeds)
        restored[order] = sorted_embeds
        return restored

    def similarity(self, images: Any, texts: Any) -> torch.Tensor:
        """Similarity of every picture with every text: `-> (n, m)`. Each side: raw inputs or `(rows, d)`
        embeddings."""
        image_embeds = images if _is_embeddings(images) else self.embed_images(images)
        text_embeds = texts if _is_embeddings(texts) else self.embed_texts(texts)
        return self.similarity_function(image_embeds, text_embeds)

    def classify(self, images: Any, labels: Sequence[str], templates: Sequence[str] | None = None) -> torch.Tensor:
        """Zero-shot classification: probabilities `(n, c)`, rows sum to 1.

        A label's embedding is the average over its prompts, renormalised (Radford et al. 2021, arXiv
        2103.00020, section 3.1.4); probabilities are the softmax over labels of `logit_scale * similarity`.
        SigLIP is read the same way: its sigmoid scores each label on its own, and a bias common to all labels leaves
        the softmax unchanged.

        Args:
            images: raw pictures or `(n, d)` embeddings.
            labels: the classes, in the order of the columns.
            templates: prompts with `{}` for the label; default the domain's, else a few generic ones.

        Raises:
            ClipDomainError: no label, or a template without `{}`.
        """
        scores = self.class_scores(images, labels, templates)
        scale = self.logit_scale or find_logit_scale(self.model).detach().float().exp().cpu()
        return (scale * scores).softmax(dim=-1)

    def class_scores(self, images: Any, labels: Sequence[str], templates: Sequence[str] | None = None) -> torch.Tensor:
        """Similarity of every picture with every label's averaged prompts, without temperature: `-> (n, c)`.

        Arguments as for `classify`; raises what it does.
        """
        labels = [labels] if isinstance(labels, str) else list(labels)
        if not labels:
            raise ClipDomainError("classify needs at least one label; got an empty list.")
        prompts = templates or (self.domain.prompts if self.domain is not None else ()) or GENERIC_PROMPTS
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if wrong := [prompt for prompt in prompts if "{}" not in prompt]:
            raise ClipDomainError(f'template {wrong[0]!r} has no "{{}}" for the label, e.g. "a photo of {{}}.".')
        texts = [prompt.replace("{}", label) for label in labels for prompt in prompts]
        text_embeds = self.embed_texts(texts).unflatten(0, (len(labels), len(prompts))).mean(dim=1)  # (c, d)
        if self._normalise:
            text_embeds = F.normalize(text_embeds, dim=-1)
        return self.similarity(images, text_embeds)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _pixel_batches(self, images: Iterable[Any]) -> Iterator[torch.Tensor]:
        """Pixels `(b, 3, h, w)` float32; while the model works on a batch, threads decode the next one."""
        waiting: deque = deque()
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for batch in _batched(enumerate(images), self.batch_size):
                waiting.append([pool.submit(self.pixels, position, image) for position, image in batch])
                if len(waiting) > 1:
                    yield torch.stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield torch.stack([future.result() for future in waiting.popleft()])

    def pixels(self, position: int, image: Any) -> torch.Tensor:
        """One picture as the model takes it, `(3, h, w)` float32; raises `ClipDomainError` with its position."""
        if isinstance(image, torch.Tensor) and image.is_floating_point() and image.shape[:-2] == (3,):
            return image  # (3, h, w), prepared before by the same transform, see `RepeatedEvaluator`
        try:
            if self._transform is not None:
                return self._transform.evaluation(image)  # decodes a large JPEG no larger than it needs
            picture = decode_image(image)
        except ClipDomainError as error:
            raise ClipDomainError(f"image {position}: {error}") from error
        return self.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0]

    def token_ids(self, texts: list[Any]) -> list[list[int]]:
        """The texts' tokens, cleaned and cut as in training; not padded. Raises `ClipDomainError` for what is no string."""
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise ClipDomainError(f"text {position} is a {type(text).__name__}; expected a string.")
        if self.domain is not None:
            texts = [clean_caption(text, self.domain) for text in texts]
        if not texts:
            return []
        return self.processor.tokenizer(texts, truncation=True, max_length=self._capacity)["input_ids"]

    @property
    def _capacity(self) -> int:
        return min(text_capacity(self.model), self.processor.tokenizer.model_max_length)

    def padded(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, `(b, t)` int64."""
        capacity = self._capacity
        # SigLIP pools its last position, padding included, and was trained at full length without a mask.
        siglip = text_padding(self.model) == "max_length"
        longest = max(len(row) for row in ids)
        length = capacity if siglip else min(-(-longest // 8) * 8, capacity)
        inputs = self.processor.tokenizer.pad(
            {"input_ids": ids}, padding="max_length", max_length=length, return_tensors="pt"
        )
        names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        return {name: inputs[name] for name in names}

    def finish(self, embeds: list[torch.Tensor], what: str) -> torch.Tensor:
        """What the towers returned, `(b, d)` each, as embeddings `(n, d)`: finite, and normalised where wanted."""
        if not embeds:
            raise ClipDomainError(f"nothing to embed: got an empty list of {what}s.")
        joined = torch.cat(embeds)
        bad = ~joined.isfinite().all(dim=1)
        if bad.any():
            raise ClipDomainError(
                f"{int(bad.sum())} of {len(joined)} {what} embeddings are not finite: the weights have "
                "diverged or overflow in half precision; lower the learning rate or use float32."
            )
        return F.normalize(joined, dim=-1) if self._normalise else joined


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel or DataParallel."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored, frozen towers in eval included.

    `no_grad`, not `inference_mode`: embeddings may be fed to something that trains, such as a linear probe.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _bar(items: Any, what: str, progress: bool | None) -> tqdm:
    total = len(items) if hasattr(items, "__len__") else None
    return tqdm(total=total, desc=what, delay=2, leave=False, disable=progress is False)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _is_one_image(images: Any) -> bool:
    return isinstance(images, str | Path | bytes | dict) or hasattr(images, "convert")


def _is_embeddings(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2 and value.is_floating_point()
