"""From rows to training batches: pairs a second without loader's workers, as small models are trained on a CPU.

    python scripts/bench_batches.py                                      # the embedded scientific samples
    python scripts/bench_batches.py --domain medical --data DATA/medical
    python scripts/bench_batches.py --before CHECKOUT                    # besides: an older checkout of this package
    python scripts/bench_batches.py --pairs 64 --rounds 1                # to try the script

Each way goes through the pairs twice (`PairDataset`, `PairCollator`, batches of 128, the starter's 128 pixels), in a process
of its own and in turns; nothing is computed beside it. In the first epoch all captions are new, in the second they were met
before. Prints a Markdown table: medians of the rounds, and their least and largest ratio to the last way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH = 128
EPOCHS = ("first epoch", "second epoch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--data", help="a folder or file of pairs. Default: the domain's embedded synthetic samples")
    parser.add_argument("--before", type=Path, help="an older checkout of this package, such as a git worktree")
    parser.add_argument("--pairs", type=int, default=1024, help="of the training split, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    own = Path(__file__).resolve().parents[1]
    ways = {"in one thread": (own, "1"), "in torch's threads": (own, None)}
    if options.before:
        ways["before"] = (options.before.resolve(), None)
    found: dict[str, list[list[float]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, (checkout, threads) in ways.items():
            found[way].append(run(checkout, threads))
    print(table(found))


def run(checkout: Path, threads: str | None) -> list[float]:
    """Pairs a second of each epoch, by the package of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    command = [sys.executable, __file__, "--measure", *sys.argv[1:]]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> list[float]:
    from torch.utils.data import DataLoader

    from hf_clip_domain.data.collator import PairCollator
    from hf_clip_domain.data.loading import load_pairs
    from hf_clip_domain.data.pairs import PairDataset
    from hf_clip_domain.data.samples import load_samples
    from hf_clip_domain.data.transforms import ImageTransform
    from hf_clip_domain.domains import load_domain
    from hf_clip_domain.models.loading import load_model

    _, processor = load_model("starter")
    pictures, domain = processor.image_processor, load_domain(options.domain)
    rows = (load_pairs(options.data) if options.data else load_samples(options.domain, seed=0))["train"]
    rows = rows.select(range(min(len(rows), options.pairs)))
    transform = ImageTransform(
        domain, pictures.crop_size["height"], tuple(pictures.image_mean), tuple(pictures.image_std)
    )
    data = PairDataset(rows, transform, domain, train=True)
    collator = PairCollator(processor.tokenizer)
    speeds = []
    for epoch in range(len(EPOCHS)):
        keys = [data.epoch_key(epoch, index) for index in range(len(rows))]
        start = time.perf_counter()
        pairs = sum(len(batch["input_ids"]) for batch in DataLoader(data, BATCH, sampler=keys, collate_fn=collator))
        speeds.append(pairs / (time.perf_counter() - start))
    return speeds


def table(found: dict[str, list[list[float]]]) -> str:
    last = list(found)[-1]
    lines = ["| pairs a second | " + " | ".join(f"{epoch} | to {last}" for epoch in EPOCHS) + " |"]
    lines.append("|:--|" + "--:|" * 2 * len(EPOCHS))
    for way, rounds in found.items():
        cells = []
        for epoch in range(len(EPOCHS)):
            ratios = [one[epoch] / other[epoch] for one, other in zip(rounds, found[last], strict=True)]
            cells.append(f"{statistics.median(one[epoch] for one in rounds):,.0f}")
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
