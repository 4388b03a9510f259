"""How often drift monitoring raises a false alarm, and how often it finds drift that is there.

    python scripts/measure_drift.py --data DATA                                     # the starter on DATA/scientific, ...
    python scripts/measure_drift.py --data DATA --domains industrial --model OUT     # a tuned model and its own held-out pairs
    python scripts/measure_drift.py --data DATA --cache FOLDER                      # keeps the embeddings for another run

Every set is embedded once: as it is, blurred (a Gaussian of 1% and 2% of the longest side) and noisy (Gaussian noise of 30
and 60 of 255). Then, 200 times, the rows that the model never saw are dealt out anew: a window of 500 requests, drawn
without replacement, and a reference of up to 400 others, from other groups (textbook chapters); what is left stands for the
training rows. No row stands on two sides and none twice, so that the windows have no duplicates; where fewer rows were held
out, the window has five eighths of them, and the table says so. The same window is judged as it is, with its pictures
blurred or noisy, with its captions shuffled, and in its place one of another domain, prepared as the model prepares its own.
With --model, a tuned one, a row says "training rows": its reference was made of pairs that the model was tuned on.

Each figure is the share of windows. `alarm` is the command's own rule for one look; `p <= 0.05` what the look would give at
that level, which shows the calibration.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from PIL import Image, ImageFilter
from tqdm import tqdm

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.fingerprint import fingerprint
from hf_clip_domain.models.folders import STARTER
from hf_clip_domain.ops.drift.detector import Rule, look
from hf_clip_domain.ops.drift.making import hashed_texts, noting_quality, pair_scores
from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.drift.windows import Window
from hf_clip_domain.serving.centre import Centre
from hf_clip_domain.serving.sketches import count_texts, sketch
from hf_clip_domain.serving.statistics import SERIES

OTHER = {"scientific": "medical", "medical": "scientific", "industrial": "general", "general": "industrial"}
MOST = 1500  # rows of a set
CHANGES = {"blur 1%": (0.01, 0), "blur 2%": (0.02, 0), "noise 30": (0, 30), "noise 60": (0, 60)}
TESTS = ("image", "quality", "text", "alignment", "pairing", "terms")


class Rows:
    """Embedded pairs, and the scores that any of them get."""

    def __init__(self, embedder: ClipEmbedder, pairs: Dataset, changes: dict, file: Path | None) -> None:
        draw = np.random.default_rng(0)
        pairs = pairs.select(np.sort(draw.permutation(len(pairs))[:MOST]))
        texts = [str(draw.choice(captions)) for captions in pairs["text"]]
        self.groups = np.array([group or f"row {row}" for row, group in enumerate(pairs["group"])])
        self.tokens = hashed_texts(embedder, texts)
        self.embedder = embedder
        if file is not None and file.is_file():
            found = dict(np.load(file))
        else:
            found = {"text": embedder.embed_texts(texts).numpy()}
            for name, change in {"": (0, 0), **changes}.items():
                qualities: list[np.ndarray] = []
                prepared = noting_quality(embedder, changed(pairs, *change), qualities)
                found[f"image {name}"] = embedder.embed_images(prepared).numpy()
                found[f"quality {name}"] = np.stack(qualities)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, **found)
        self.texts = found.pop("text")
        self.images, self.qualities = (
            {name.removeprefix(kind): rows for name, rows in found.items() if name.startswith(kind)}
            for kind in ("image ", "quality ")
        )

    def __len__(self) -> int:
        return len(self.texts)

    def scores(self, rows: np.ndarray, texts: np.ndarray, change: str = "") -> np.ndarray:
        return pair_scores(
            self.embedder, torch.from_numpy(self.images[change][rows]), torch.from_numpy(self.texts[texts])
        )

    def margins(self, centre: Centre, rows: np.ndarray, texts: np.ndarray, change: str = "") -> np.ndarray:
        return centre.margins(self.images[change][rows], self.texts[texts])

    def window(self, centre: Centre, rows: np.ndarray, change: str = "", texts: np.ndarray | None = None) -> Window:
        texts = rows if texts is None else texts
        series = {name: np.empty((0, *shape), dtype=kind) for name, (kind, shape) in SERIES.items()}
        series["image_sketches"] = sketch(self.images[change][rows])
        series["image_qualities"] = self.qualities[change][rows]
        series["text_sketches"] = sketch(self.texts[texts])
        series["pair_scores"] = self.scores(rows, texts, change)
        series["pair_margins"] = self.margins(centre, rows, texts, change)
        return Window("window", 0, 0, len(rows), series, count_texts([self.tokens[row] for row in texts]), len(rows))

    def reference(self, rows: np.ndarray, others: tuple[Rows, np.ndarray]) -> Reference:
        train, places = others
        centre = Centre(train.images[""][places[:500]].mean(axis=0), train.texts[places[:500]].mean(axis=0))
        known = count_texts([train.tokens[row] for row in places]) > 0
        unseen = np.array([np.count_nonzero(~known[self.tokens[row]]) for row in rows])
        arrays = {
            "image_sketches": sketch(self.images[""][rows]),
            "text_sketches": sketch(self.texts[rows]),
            "image_qualities": self.qualities[""][rows],
            "image_others": sketch(train.images[""][places[:500]]),
            "text_others": sketch(train.texts[places[:500]]),
            "image_mean": centre.image,
            "text_mean": centre.text,
            "pair_scores": self.scores(rows, rows),
            "pair_margins": self.margins(centre, rows, rows),
            "clusters": np.unique(self.groups[rows], return_inverse=True)[1],
            "vocabulary": known,
            "unseen": unseen,
            "tokens": np.array([len(self.tokens[row]) for row in rows]),
        }
        return Reference({}, arrays)


def changed(pairs: Dataset, blur: float, noise: float):
    """The pictures, changed at their own size before the model's preparation."""
    for row in range(len(pairs)):
        if not blur and not noise:
            yield pairs[row]["image"]
            continue
        picture = decode_image(pairs[row]["image"]).convert("RGB")
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(blur * max(picture.size)))
        if noise:
            added = np.random.default_rng(row).normal(0, noise, (picture.height, picture.width, 3))
            picture = Image.fromarray((np.asarray(picture) + added).clip(0, 255).astype(np.uint8))
        yield picture


def deal(rows: Rows, window: int, most: int, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Window, reference and the rest, of different groups (but for one group that reference and rest may share)."""
    kinds, place = np.unique(rows.groups, return_inverse=True)
    order = np.argsort(draw.permutation(len(kinds))[place], kind="stable")
    shared = np.isin(place, place[order[:window]])
    rest = order[~shared[order]]
    return order[:window], rest[:most], rest[most:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one dataset a domain")
    parser.add_argument("--domains", nargs="+", default=["scientific", "medical", "industrial"])
    parser.add_argument("--model", default=STARTER, help="one that was tuned on the domain; default: the starter")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--window", type=int, default=500)
    parser.add_argument("--reference_rows", type=int, default=400)
    parser.add_argument("--cache", type=Path, help="keep embeddings here")
    options = parser.parse_args()
    level = Rule().level
    print(f"| domain | window | rows | reference | {' | '.join(TESTS)} | **alarm** | p <= 0.05 |")
    print(f"|:--|:--|{'--:|' * (len(TESTS) + 4)}", flush=True)
    for domain in options.domains:
        started = time.monotonic()
        embedder = ClipEmbedder.from_pretrained(options.model, domain=load_domain(domain))
        pairs = load_pairs(options.data / domain)

        def embedded(name: str, rows: Dataset, changes: dict, embedder=embedder, domain=domain) -> Rows:
            file = f"{fingerprint(embedder.model)[:12]}-{domain}-{name}.npz"
            return Rows(embedder, rows, changes, options.cache and options.cache / file)

        tuned = options.model != STARTER
        own = [rows for name, rows in pairs.items() if name != "train" or not tuned]
        unseen = embedded("own", concatenate_datasets(own), CHANGES)
        other = embedded("other", load_pairs(options.data / OTHER[domain])["train"], {})
        training = embedded("train", pairs["train"], {}) if tuned else None
        alarms = judge_all(unseen, other, training, options, level)
        for name, (counts, rows, reference) in alarms.items():
            shares = " | ".join(f"{share:.1%}" for share in np.mean(counts, axis=0))
            print(f"| {domain} | {name} | {rows} | {reference} | {shares} |", flush=True)
        print(f"<!-- {domain}: {(time.monotonic() - started) / 60:.1f} minutes -->", flush=True)


def judge_all(unseen: Rows, other: Rows, training: Rows | None, options: argparse.Namespace, level: float) -> dict:
    """By window's name: for each repeat what fired `(repeats, tests + 2)`, and the sizes."""
    draw, found = np.random.default_rng(0), defaultdict(lambda: ([], 0, 0))
    size = min(options.window, len(unseen) * 5 // 8)

    def judge(name: str, reference: Reference, window: Window, rows: int) -> None:
        seen = look(reference, [window], level)
        smallest = min(test.adjusted for test in seen.tests.values())
        fired = [*(test in seen.drifted for test in TESTS), bool(seen.drifted), smallest <= 0.05]
        counts, _, _ = found[name]
        found[name] = ([*counts, fired], window.requests, rows)

    for _ in tqdm(range(options.repeats), desc="windows", delay=2, leave=False):
        rows, kept, rest = deal(unseen, size, options.reference_rows, draw)
        others = (unseen, rest) if training is None else (training, draw.permutation(len(training)))
        reference = unseen.reference(kept, others)
        centre = Centre(reference.arrays["image_mean"], reference.arrays["text_mean"])
        judge("as it is", reference, unseen.window(centre, rows), len(kept))
        for change in CHANGES:
            judge(change, reference, unseen.window(centre, rows, change), len(kept))
        judge("captions shuffled", reference, unseen.window(centre, rows, texts=draw.permutation(rows)), len(kept))
        judge("another domain", reference, other.window(centre, draw.permutation(len(other))[:size]), len(kept))
        if training is not None:
            learned = training.reference(others[1][-len(kept) :], (training, others[1][: -len(kept)]))
            centre = Centre(learned.arrays["image_mean"], learned.arrays["text_mean"])
            judge("as it is, reference of training rows", learned, unseen.window(centre, rows), len(kept))
    return found


if __name__ == "__main__":
    main()
