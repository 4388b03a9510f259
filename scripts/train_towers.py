"""Train the heads that join the two pretrained towers of `--model_name_or_path towers`.

    pip install "hf-clip-domain[towers]"
    python scripts/train_towers.py --data DATA

DATA/general holds `metadata.jsonl` (file_name, text, group, split) and its pictures. Both towers stay frozen: their
features are computed once (minutes) and kept in `--cache`; the heads are then fitted in seconds. Each of a few settings
is fitted on the train split less held-out groups and judged by their text-to-image recall@10; the best is fitted again on the
whole train split and saved. The test split is read for the last line alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from towers.features import Features, features_of
from towers.heads import Heads, fit, recall

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.towers.pretrained import HEADS

CACHE = Path.home() / ".cache" / "hf_clip_domain" / "towers"
WIDTH = 256
SETTINGS = (
    {"drop": 0.0},
    {"drop": 0.3},
    {"drop": 0.5},
    {"drop": 0.3, "weight_decay": 1.0},
    {"drop": 0.3, "batch_size": 512},
)


def fitted(part: Features, seed: int, settings: dict[str, float]) -> Heads:
    """New heads, fitted on `part`."""
    torch.manual_seed(seed)
    heads = Heads(part, WIDTH)
    fit(heads, [part], seed=seed, **settings)
    return heads


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds general/")
    parser.add_argument("--output", type=Path, default=HEADS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where features are kept")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        train = features_of(options.data / "general", "train", options.cache)
        rest, held = train.part(~train.validation), train.part(train.validation)
        scores = []
        for settings in SETTINGS:
            scores.append(recall(fitted(rest, options.seed, settings), held))
            print(f"{settings}: held-out recall@10 {scores[-1]:.1f} of {len(held.images)} pictures", flush=True)
        best = SETTINGS[scores.index(max(scores))]
        heads = fitted(train, options.seed, best)
        weights = {name: value.detach().half().contiguous() for name, value in heads.state_dict().items()}
        save_file(weights, options.output)
        options.output.chmod(0o644)
        test = features_of(options.data / "general", "test", options.cache)
        print(f"{best} on all {len(train.images)} pictures; test split, {len(test.images)}: {recall(heads, test):.1f}")
    except ClipDomainError as error:
        print(f"train_towers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
