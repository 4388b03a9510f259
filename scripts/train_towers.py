"""Train the heads that join the two pretrained towers of `--model_name_or_path towers`.

    pip install "hf-clip-domain[towers]"
    python scripts/train_towers.py --data DATA

DATA/general holds `metadata.jsonl` (file_name, text, group, split) and its pictures. Both towers stay frozen: their
features are computed once (minutes) and kept in `--cache`; the heads are then fitted in seconds. A few settings are fitted
on the train split without some groups, judged by their text-to-image recall@10 on those groups, and the best is saved. The
held-out groups stay untouched, for whoever has to choose a tuned model by general pairs that the heads have not learnt. The
test split is read for the last line alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from starter.pairs import read_folder
from towers.features import Features, features_of
from towers.general import training_pairs, validation_pairs
from towers.heads import Heads, fit, recall

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.towers.pretrained import HEADS

CACHE = Path.home() / ".cache" / "hf_clip_domain" / "towers"
WIDTH = 256
SETTINGS = (
    {"dropout": 0.0},
    {"dropout": 0.3},
    {"dropout": 0.5},
    {"dropout": 0.3, "weight_decay": 1.0},
    {"dropout": 0.3, "batch_size": 512},
)


def fitted(features: Features, seed: int, dropout: float, **settings: float) -> Heads:
    """New heads, fitted on `features`."""
    torch.manual_seed(seed)
    heads = Heads(features, WIDTH, dropout)
    fit(heads, features, seed=seed, **settings)
    return heads


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds general/")
    parser.add_argument("--output", type=Path, default=HEADS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where features are kept")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.data / "general"
    try:
        parts = training_pairs(folder), validation_pairs(folder), read_folder(folder, "test")
        train, held, test = (features_of(pairs, "general", options.cache) for pairs in parts)
    except ClipDomainError as error:
        print(f"train_towers: {error}", file=sys.stderr)
        return 1
    tried = []
    for settings in SETTINGS:
        heads = fitted(train, options.seed, **settings)
        tried.append((recall(heads, held), heads))
        print(f"{settings}: recall@10 {tried[-1][0]:.1f} of {len(held.images)} held-out pictures", flush=True)
    best = max(range(len(tried)), key=lambda place: tried[place][0])
    heads = tried[best][1]
    weights = {name: value.detach().half().contiguous() for name, value in heads.state_dict().items()}
    save_file(weights, options.output)
    options.output.chmod(0o644)
    print(
        f"{SETTINGS[best]} saved; recall@10 of the {len(test.images)} pictures of the test split: {recall(heads, test):.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
