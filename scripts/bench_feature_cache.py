"""Time of an epoch with and without kept features of a frozen vision tower, and the difference of the weights.

    python scripts/bench_feature_cache.py                       # the table of docs/feature_cache.md
    python scripts/bench_feature_cache.py --only starter --rows 128 --rounds 3

Every line trains the same model twice on the same embedded samples, in the same order and with the same captions,
once from pixels and once with the feature cache, the two taking turns (`--rounds` times; medians are printed). Pictures
are shown without augmentation in both. The shapes ViT-B/32 and ViT-B/16 have random weights and 2 of the 12 layers in
both towers, so that the proportions of the towers are CLIP's own while a CPU finishes in minutes; the starter is as
shipped. One core, and pictures are decoded in the main process, so that nothing overlaps; the seconds are the
process's CPU time, which other work on the machine changes little. "ratio" is the time of an epoch without by that of
an epoch with the cache, from the second epoch on. "projection": of the text tower its projection alone trains.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, PrinterCallback, TrainerCallback
from transformers.utils import logging

from hf_clip_domain import ClipTrainer, ClipTrainingArguments, PairCollator, load_domain, load_model
from hf_clip_domain.data.pairs import PairDataset
from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.models.prefix import vision_stages

# Shape, how many stages of the vision tower are frozen (None: all), what of the text tower trains.
SETTINGS = [
    ("ViT-B/16", None, "projection"),
    ("ViT-B/16", None, "whole"),
    ("ViT-B/32", None, "projection"),
    ("ViT-B/32", None, "whole"),
    ("starter", None, "whole"),
    ("ViT-B/32", 2, "whole"),
]


class EpochTimes(TrainerCallback):
    def __init__(self):
        self.seconds: list[float] = []

    def on_epoch_begin(self, *args, **kwargs):
        self._start = time.process_time()

    def on_epoch_end(self, *args, **kwargs):
        self.seconds.append(time.process_time() - self._start)


def build(shape: str, processor) -> CLIPModel:
    if shape == "starter":
        return load_model("starter")[0]
    torch.manual_seed(0)
    ids = {"bos_token_id": 4998, "eos_token_id": 4999, "pad_token_id": 4999}
    config = CLIPConfig(
        text_config={"vocab_size": len(processor.tokenizer), "num_hidden_layers": 2, **ids},
        vision_config={"patch_size": int(shape.partition("/")[2]), "num_hidden_layers": 2},
    )
    return CLIPModel(config)


def freeze(model: CLIPModel, stages: int | None, text: str) -> None:
    for stage in vision_stages(model)[:stages]:
        for module in stage.modules:
            module.requires_grad_(False)
    if text == "projection":
        model.text_model.requires_grad_(False)


def train(shape: str, stages: int | None, text: str, options, folder: Path, cached: bool):
    """Seconds of every epoch, and the trained weights."""
    domain, (_, processor) = load_domain("general"), load_model("starter")
    model = build(shape, processor)
    freeze(model, stages, text)
    pairs = load_samples("general", train=options.rows, validation=1, test=1)["train"]
    image = processor.image_processor
    transform = ImageTransform(domain, model.config.vision_config.image_size, image.image_mean, image.image_std)
    settings = {"feature_cache": str(folder / "features")} if cached else {}
    arguments = ClipTrainingArguments(
        str(folder), per_device_train_batch_size=options.batch, num_train_epochs=options.epochs, learning_rate=1e-5,
        lr_scheduler_type="constant", save_strategy="no", use_cpu=True, disable_tqdm=True, report_to=[], log_level="error", **settings,
    )  # fmt: skip
    logging.set_verbosity_error()
    times = EpochTimes()
    trainer = ClipTrainer(
        model,
        arguments,
        train_dataset=PairDataset(pairs, transform, domain, train=True, augment=False),
        data_collator=PairCollator(processor.tokenizer),
        callbacks=[times],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times.seconds, model.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", help="one shape")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    texts = [texts[0] for texts in load_samples("general", train=options.rows, validation=1, test=1)["train"]["text"]]
    tokens = statistics.mean(map(len, load_model("starter")[1].tokenizer(texts)["input_ids"]))
    print(
        f"Captions of {tokens:.0f} tokens on average, {options.rows} pairs, batch {options.batch}, {options.epochs} epochs, "
        f"median of {options.rounds} rounds\n"
    )
    print("| shape | frozen of the vision tower | trained of the text tower | epoch without (s) | first epoch with (s) "
          "| later epoch with (s) | ratio | weights differ by |")  # fmt: skip
    print("|:--|:--|:--|---:|---:|---:|---:|---:|")
    for shape, stages, text in SETTINGS:
        if options.only not in (None, shape):
            continue
        plain, first, later, difference = [], [], [], 0.0
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                seconds, weights = train(shape, stages, text, options, Path(folder), cached=False)
                plain += seconds[1:]
                seconds, others = train(shape, stages, text, options, Path(folder), cached=True)
                first.append(seconds[0])
                later += seconds[1:]
                difference = max(difference, *((weights[k] - others[k]).abs().max().item() for k in weights))
        plain, first, later = (statistics.median(values) for values in (plain, first, later))
        frozen = "all" if stages is None else f"embeddings and {stages - 1} of 2 layers"
        print(f"| {shape} | {frozen} | {text} | {plain:.2f} | {first:.2f} | {later:.2f} | {plain / later:.1f} "
              f"| {difference:.0e} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
