"""Small pictures first, large ones last, against large ones all the way: time and final recall, side by side.

    python scripts/bench_curriculum.py                                        # the embedded scientific samples
    python scripts/bench_curriculum.py --dataset DATA/scientific --seeds 0 1 2
    python scripts/bench_curriculum.py --dataset DATA/scientific --split validation --ways fixed step random

Every run adapts the starter (trained at 128 pixels) with the domain's defaults and equally many epochs; neither
checkpoints nor evaluations interrupt it, and the seconds are those of `train()`, pictures being read in this process
(their share of the time is the column "reading"). The ways of a seed follow one another in one process. Prints a
Markdown table: means over the seeds of the time as a multiple of the first way's (and of the processor's time, which
other programs on the machine disturb less), and of mean recall@10 of both directions at the final size; and the
difference to the first way with its 95% interval, by a bootstrap over the pairs (the same pairs are drawn for both
ways, and the seeds averaged).
What stands after `--` is added to every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import set_seed

from hf_clip_domain.cli.assembly import build_trainer, load_parts, similarity_of
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.evaluation import RetrievalEvaluator
from hf_clip_domain.evaluation.bootstrap import interval
from hf_clip_domain.evaluation.embedded import measure_retrieval
from hf_clip_domain.losses import build_loss
from hf_clip_domain.models.image_positions import at_image_size

WAYS = {
    "fixed": lambda low, high: [f"{high}"],
    "step": lambda low, high: [f"{low},{high}", "--resolution_schedule", "step"],
    "linear": lambda low, high: [f"{low},{high}", "--resolution_schedule", "linear"],
    "cosine": lambda low, high: [f"{low},{high}", "--resolution_schedule", "cosine"],
    "random": lambda low, high: [f"{low},{high}", "--resolution_schedule", "random"],
    "low": lambda low, high: [f"{low}"],
    "fixed, half the patches": lambda low, high: [f"{high}", "--patch_dropout", "0.5"],
    "step, half the patches": lambda low, high: [f"{low},{high}", "--patch_dropout", "0.5"],
}
KEYS = ("image_to_text/recall@10", "text_to_image/recall@10")


def run(way: str, seed: int, options) -> dict:
    """Seconds of training, the mean recall@10 of both directions, and its replicates."""
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--domain", options.domain, "--model_name_or_path", "starter", "--output_dir", folder]
        argv += ["--eval_strategy", "no", "--save_strategy", "no", "--precision", "fp32", "--seed", str(seed)]
        argv += ["--dataloader_num_workers", "0", "--live_page", "false", "--disable_tqdm", "true"]
        argv += ["--logging_steps", "5"]
        argv += ["--dataset", options.dataset] if options.dataset else []
        argv += ["--resolutions", *WAYS[way](options.low, options.high), *options.extra]
        parsed = parse_options(argv)
        set_seed(seed)
        model, processor, pairs = load_parts(parsed, lambda text: None)
        model, processor = at_image_size(model, processor, parsed.training.resolutions[-1])
        loss = build_loss(parsed.training.loss, **(parsed.training.loss_settings or {}))
        trainer = build_trainer(model, processor, pairs, parsed, loss)
        start, work = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, work = time.perf_counter() - start, time.process_time() - work
        rows = pairs[options.split]
        evaluator = RetrievalEvaluator(rows, processor, domain=parsed.domain, similarity=similarity_of(loss))
        found = measure_retrieval(evaluator.embed(trainer.model))
    logs = [entry for entry in trainer.state.log_history if "time_share/data" in entry]
    return {
        "seconds": seconds,
        "work": work,
        "data": statistics.mean(entry["time_share/data"] for entry in logs) if logs else float("nan"),
        "recall": statistics.mean(found.metrics[key] for key in KEYS),
        "replicates": np.mean([found.replicates[key] for key in KEYS], axis=0).tolist(),
    }


def kept_run(way: str, seed: int, options) -> dict:
    """A run, or what `--keep` holds of it."""
    file = options.keep and options.keep / f"{way} {seed}.json"
    if file and file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        found = run(way, seed, options)
        if file:
            options.keep.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found), encoding="utf-8")
    return {**found, "replicates": np.array(found["replicates"])}


def table(results: dict[str, list[dict]], options) -> str:
    lines = [
        "| way | seconds | time | CPU time | reading | mean R@10 | 95% interval | difference | 95% interval |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    first = next(iter(results.values()))
    for way, runs in results.items():
        pairs = list(zip(runs, first, strict=False))
        times, works = (statistics.mean(own[key] / base[key] for own, base in pairs) for key in ("seconds", "work"))
        recall, replicates = (np.mean([one[key] for one in runs], axis=0) for key in ("recall", "replicates"))
        cells = [f"{statistics.mean(one['seconds'] for one in runs):.0f}", f"{times:.2f}", f"{works:.2f}"]
        cells += [f"{statistics.mean(one['data'] for one in runs):.0%}", f"{100 * recall:.1f}", _span(replicates)]
        if runs is first:
            cells += ["", ""]
        else:
            difference = np.mean([own["recall"] - base["recall"] for own, base in pairs])
            cells += [f"{100 * difference:+.1f}"]
            cells += [_span(np.mean([own["replicates"] - base["replicates"] for own, base in pairs], axis=0))]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(replicates: np.ndarray) -> str:
    ends = interval(replicates)
    return "-" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--dataset", help="default: the domain's embedded synthetic samples")
    parser.add_argument("--ways", nargs="+", default=["fixed", "step"], choices=list(WAYS), metavar="WAY")
    parser.add_argument("--low", type=int, default=96)
    parser.add_argument("--high", type=int, default=224)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="that is scored")
    parser.add_argument("--keep", type=Path, help="folder of what was run; of the same options, it is not run again")
    parser.add_argument("extra", nargs="*", help="after --: options for the runs")
    options = parser.parse_args()
    results: dict[str, list[dict]] = {}
    for seed in options.seeds:
        for way in options.ways:
            found = kept_run(way, seed, options)
            results.setdefault(way, []).append(found)
            shown = {name: round(value, 4) for name, value in found.items() if name != "replicates"}
            print(f"seed {seed}, {way}: {shown}", file=sys.stderr, flush=True)
        print(table(results, options) + "\n", flush=True)  # after every seed, so that a cut loses nothing


if __name__ == "__main__":
    main()
