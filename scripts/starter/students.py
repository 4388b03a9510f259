"""The two students, one `CLIPModel`: each tower learns its teacher's place in the shared space."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, mse_loss, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .heads import EMBEDDING, multi_positive_loss
from .texts import TokenTable, length_batches
from .views import MAP_WIDTH, PLACES, Views

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, so that nothing else has to be told
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
WINDOW = 8  # patches a side: 128 pixels


def build_student(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """About 3.8 million weights; the end token has an id of its own, so padding never matters."""
    torch.manual_seed(seed)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = dict(
        vocab_size=len(tokenizer), hidden_size=160, intermediate_size=640, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=77, projection_dim=EMBEDDING, **ids,
    )  # fmt: skip
    vision = dict(
        hidden_size=192, intermediate_size=768, num_hidden_layers=5, num_attention_heads=3,
        image_size=WINDOW * 16, patch_size=16, projection_dim=EMBEDDING,
    )  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING))
    # Waves along both axes: patches know their neighbours from the first step (as in MAE, arXiv 2111.06377).
    with torch.no_grad():
        waves = _waves(vision["hidden_size"])
        model.vision_model.embeddings.position_embedding.weight[1:].copy_(0.3 * waves)
    return model


def _waves(width: int) -> torch.Tensor:
    """Sines and cosines of row and column, (64, width)."""
    frequencies = 10.0 ** -torch.linspace(0, 2, width // 4)
    row, column = (torch.arange(WINDOW * WINDOW) // WINDOW, torch.arange(WINDOW * WINDOW) % WINDOW)
    angles = [place[:, None] * frequencies for place in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


class Averaged:
    """Exponential moving average of the weights that train; `store()` copies them back into the model."""

    def __init__(self, parameters: list[nn.Parameter], decay: float = 0.997) -> None:
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.averages = [parameter.detach().clone() for parameter in parameters]

    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    def store(self) -> None:
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                parameter.copy_(average)


def fit(
    losses: Iterator[torch.Tensor],
    tower: list[nn.Parameter],
    others: list[nn.Parameter],
    *,
    seconds: float,
    learning_rate: float,
    weight_decay: float,
    report: str,
    checkpoint: Callable[[Averaged], None],
) -> Averaged:
    """AdamW until the time is over; warm-up and cosine follow the clock, so the schedule always ends.

    `tower` are the weights kept (averaged), `others` the throw-away heads.
    """
    optimizer = torch.optim.AdamW(
        [*tower, *others], lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, foreach=True
    )
    averaged = Averaged(tower)
    start = said = time.monotonic()
    while (passed := (time.monotonic() - start) / seconds) < 1:
        rate = learning_rate * min(1.0, passed / 0.03 + 0.01) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * passed)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = next(losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        averaged.update()
        if time.monotonic() - said > 90:
            said = time.monotonic()
            print(f"{report}: {passed:4.0%}, step {averaged.steps}, loss {loss.item():.4f}", flush=True)
            checkpoint(averaged)
    averaged.store()
    checkpoint(averaged)
    print(f"{report}: done, {averaged.steps} steps, loss {loss.item():.4f}", flush=True)
    return averaged


def tower_parameters(model: CLIPModel, tower: str) -> list[nn.Parameter]:
    """The weights of one tower ("text" or "vision") with its projection."""
    parts = (
        getattr(model, f"{tower}_model"),
        getattr(model, "text_projection" if tower == "text" else "visual_projection"),
    )
    return [parameter for part in parts for parameter in part.parameters()]


def text_losses(
    model: CLIPModel,
    table: TokenTable,
    targets: torch.Tensor,
    teacher: torch.Tensor,
    head: nn.Linear,
    seed: int,
) -> Iterator[torch.Tensor]:
    """Be near the teacher in the shared space (cosine), and tell its 384 numbers through `head` (cosine)."""
    rng = np.random.default_rng(seed)
    while True:
        for rows in length_batches(table.lengths, 4096, rng):
            ids, mask = table.batch(rows)
            pooled = model.text_model(input_ids=ids, attention_mask=mask).pooler_output  # (b, 160)
            embeds = normalize(model.text_projection(pooled), dim=-1)  # (b, 192)
            near = 1 - (embeds * targets[rows]).sum(-1).mean()
            tell = 1 - cosine_similarity(head(pooled), teacher[rows]).mean()
            # Texts of a batch apart from each other as the teacher has them.
            apart = mse_loss(embeds @ embeds.T, targets[rows] @ targets[rows].T)
            yield near + 0.5 * tell + 3.0 * apart


class Windows:
    """Batches of student windows: pixels (b, 3, 128, 128) and the teacher's maps (b, 64, 256) under them."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.mean = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1)
        self.std = torch.tensor(PIXEL_STD).view(1, 3, 1, 1)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.from_numpy(self.views.maps[rows].astype(np.float32))
        maps = maps.view(len(rows), PLACES, PLACES, MAP_WIDTH)
        top, left = rng.integers(0, PLACES - WINDOW + 1, size=2)
        pictures = self.views.pictures[rows, top * 16 : (top + WINDOW) * 16, left * 16 : (left + WINDOW) * 16]
        pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        maps = maps[:, top : top + WINDOW, left : left + WINDOW]
        if rng.random() < 0.5:
            pixels, maps = pixels.flip(3), maps.flip(2)
        # Light and colour change what the student sees, not what it should tell.
        count = (len(rows), 1, 1, 1)
        light = torch.from_numpy(rng.uniform(0.75, 1.25, count)).float()
        contrast = torch.from_numpy(rng.uniform(0.75, 1.25, count)).float()
        grey = torch.from_numpy(rng.uniform(-0.3, 0.6, count)).float().clamp(min=0)
        level = pixels.mean((1, 2, 3), keepdim=True)
        pixels = (pixels - level) * contrast + level * light
        pixels = pixels + grey * (pixels.mean(1, keepdim=True) - pixels)
        return (pixels.clamp(0, 1) - self.mean) / self.std, maps

    def mixed(
        self, pixels: torch.Tensor, maps: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CutMix (arXiv 1905.04899) along the patch grid: a box of the next picture, with its targets."""
        high, wide = rng.integers(2, WINDOW, size=2)
        top, left = rng.integers(0, WINDOW - high + 1), rng.integers(0, WINDOW - wide + 1)
        pixels, maps = pixels.clone(), maps.clone()
        box = (slice(top * 16, (top + high) * 16), slice(left * 16, (left + wide) * 16))
        pixels[:, :, box[0], box[1]] = pixels.roll(1, 0)[:, :, box[0], box[1]]
        box = (slice(top, top + high), slice(left, left + wide))
        maps[:, box[0], box[1]] = maps.roll(1, 0)[:, box[0], box[1]]
        return pixels, maps


def image_losses(
    model: CLIPModel,
    views: Views,
    image_head: nn.Module,
    texts_of_pair: list[np.ndarray],
    text_targets: torch.Tensor,
    heads: nn.ModuleDict,
    batch_size: int,
    seed: int,
) -> Iterator[torch.Tensor]:
    """Each patch tells its place of the teacher's map, the class token the whole; half the batch is CutMix.

    The plain half also meets its captions contrastively, placed by the text teacher: the text tower comes there
    on its own way.
    """
    rng = np.random.default_rng(seed)
    windows = Windows(views)
    log_scale = heads["scale"].weight
    while True:
        order = rng.permutation(len(views.pair))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            half = batch_size // 2
            pixels, maps = windows.batch(rows, rng)
            mixed_pixels, mixed_maps = windows.mixed(pixels[half:], maps[half:], rng)
            pixels = torch.cat([pixels[:half], mixed_pixels])
            maps = torch.cat([maps[:half], mixed_maps]).flatten(1, 2)  # (b, 64, 256)
            output = model.vision_model(pixel_values=pixels)
            patches = heads["patch"](output.last_hidden_state[:, 1:])  # (b, 64, 256)
            pooled = maps.mean(1)
            whole = heads["whole"](output.pooler_output)
            embeds = normalize(model.visual_projection(output.pooler_output), dim=-1)
            local = 1 - cosine_similarity(patches, maps, dim=-1).mean()
            total = 1 - cosine_similarity(whole, pooled - image_head.mean, dim=-1).mean()
            near = 1 - (embeds * image_head(pooled)).sum(-1).mean()
            texts = torch.tensor([rng.choice(texts_of_pair[pair]) for pair in views.pair[rows[:half]]])
            same = (texts.view(-1, 1) == texts).float()
            logits = log_scale.exp().clamp(max=40).squeeze() * embeds[:half] @ text_targets[texts].T
            yield local + total + near + 0.1 * multi_positive_loss(logits, same)


def throw_away_heads() -> nn.ModuleDict:
    """Linear maps that only training needs, from the student's width to the teacher's; and a temperature."""
    scale = nn.Linear(1, 1, bias=False)
    nn.init.constant_(scale.weight, 2.5)
    return nn.ModuleDict({"patch": nn.Linear(192, MAP_WIDTH), "whole": nn.Linear(192, MAP_WIDTH), "scale": scale})
