"""Ways to train less than the whole model, against one another on one dataset: what each costs and what it gains.

    python scripts/compare_adaptation.py                                   # the embedded scientific samples, the starter
    python scripts/compare_adaptation.py --domain medical --dataset DATA/medical --ways full lora dora --seeds 0 1 2
    python scripts/compare_adaptation.py --dataset DATA --model FOLDER -- --num_train_epochs 3

Each run is a process of its own with the domain's defaults, the options of the way, and what stands after `--`; neither
checkpoints nor evaluations interrupt it. Prints a Markdown table, means over the seeds: the share of the parameters
that trains, seconds of training, the peak of memory above what the process held with model and data loaded (with
MALLOC_MMAP_THRESHOLD_=65536, so that glibc gives freed blocks back), and text-to-image recall@10 of the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

WAYS = {
    "full": [],
    "lora": ["--adapter", "lora"],
    "dora": ["--adapter", "dora"],
    "lora, vision": ["--adapter", "lora", "--lora_towers", "vision"],
    "lora, text": ["--adapter", "lora", "--lora_towers", "text"],
    "freeze vision": ["--freeze", "vision"],
    "freeze text": ["--freeze", "text"],
    "freeze vision:2 text:1": ["--freeze", "vision:2", "text:1"],
    "projections": ["--freeze", "all_but_projections"],
    "biases and norms": ["--freeze", "all_but_biases_and_norms"],
    "rates by depth 0.8": ["--layerwise_learning_rate_decay", "0.8"],
    "average 0.99": ["--ema_decay", "0.99"],
    "muon": ["--muon_ratio", "16"],
    "adafactor": ["--optim", "adafactor"],
    "checkpointing": ["--gradient_checkpointing", "true"],
}


def measure(argv: list[str]) -> None:
    """In a child process: one run; prints its figures as JSON on the last line."""
    from transformers import set_seed

    from hf_clip_domain.cli.assembly import build_trainer, load_parts, similarity_of
    from hf_clip_domain.cli.options import parse_options
    from hf_clip_domain.evaluation import RetrievalEvaluator
    from hf_clip_domain.losses import build_loss
    from hf_clip_domain.memory import MIB, Peak
    from hf_clip_domain.models.depth import trained

    options = parse_options(argv)
    set_seed(options.training.seed)
    model, processor, pairs = load_parts(options, print)
    training, total = trained(model)
    loss = build_loss(options.training.loss, **(options.training.loss_settings or {}))
    trainer = build_trainer(model, processor, pairs, options, loss)
    start = time.perf_counter()
    with Peak(options.training.device) as peak:
        trainer.train()
    seconds = time.perf_counter() - start
    score = RetrievalEvaluator(pairs["test"], processor, domain=options.domain, similarity=similarity_of(loss))
    recall = score(trainer.model)["text_to_image/recall@10"]
    print(json.dumps({"share": training / total, "seconds": seconds, "mib": peak.above / MIB, "recall": recall}))


def run(options, way: str, seed: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", "--", "--domain", options.domain, "--seed", str(seed)]
    command += ["--model_name_or_path", options.model, "--eval_strategy", "no", "--save_strategy", "no"]
    command += ["--dataset", options.dataset] if options.dataset else []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command += [*WAYS[way], *options.extra]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(finished.stdout.splitlines()[-1])


def table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| way | trains | seconds | peak (MiB) | T→I R@10 |", "|:--|--:|--:|--:|--:|"]
    for way, runs in results.items():
        mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
        cells = [f"{mean['share']:.1%}", f"{mean['seconds']:.0f}", f"{mean['mib']:,.0f}", f"{100 * mean['recall']:.1f}"]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--dataset", help="default: the domain's embedded synthetic samples")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("extra", nargs="*", help="after --: options for the runs")
    options = parser.parse_args()
    if options.measure:
        return measure(options.extra)
    results: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for way in options.ways:
            results.setdefault(way, []).append(run(options, way, seed))
            print(f"seed {seed}, {way}: {results[way][-1]}", file=sys.stderr, flush=True)
        print(table(results) + "\n", flush=True)  # after every seed, so that a cut loses nothing


if __name__ == "__main__":
    main()
