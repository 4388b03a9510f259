"""What the ordinary command makes of `towers` in a domain, what it costs in general, and how far merging mends that.

    pip install "hf-clip-domain[towers]"
    python scripts/measure_towers.py --data DATA [--domains scientific medical] [--seeds 0 1 2] [-- --num_train_epochs 10]

DATA holds one folder a domain and `general`. A run is `hf-clip-domain train --domain D --dataset DATA/D
--model_name_or_path towers --wise_ft true --replay_dataset ... --probe_dataset ... --seed S`; what stands after `--` is
added. All runs share one process, so that each picture and caption meets the frozen towers once.

General pairs are split by scripts/towers/general.py: the heads' own training pairs are replayed, the pairs they were
chosen by judge forgetting while a model is chosen, and the test split is for the figures alone. Text-to-image Recall@10
of test splits in percent, mean over the seeds (the range in brackets); every picture of the split is a candidate. "merged"
is the model that the run saves: the best at the domain's validation split within the budget (WiSE-FT).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from towers.general import probe_table, replay_table

from hf_clip_domain.cli.main import main as command

KEY = "text_to_image/recall@10"


def finetune(domain: str, seed: int, options: argparse.Namespace, folder: Path) -> dict:
    """The `evaluation.json` of one run; one that stands in `folder` already is not repeated."""
    start, output = time.perf_counter(), folder / f"{domain}-{seed}"
    if (output / "evaluation.json").is_file():
        return json.loads((output / "evaluation.json").read_text())
    arguments = ["train", "--domain", domain, "--dataset", str(options.data / domain), "--seed", str(seed)]
    arguments += ["--model_name_or_path", "towers", "--wise_ft", "true", "--output_dir", str(output)]
    arguments += ["--replay_dataset", str(replay_table(options.data / "general", folder))]
    arguments += ["--probe_dataset", str(probe_table(options.data / "general", folder)), "--probe_rows", "1000"]
    with open(folder / f"{domain}-{seed}.log", "w") as log, contextlib.redirect_stdout(log):
        if status := command([*arguments, *options.extra]):
            raise SystemExit(f"measure_towers: the run in {output} failed with status {status}")
    print(f"{domain}, seed {seed}: {(time.perf_counter() - start) / 60:.1f} minutes", file=sys.stderr, flush=True)
    return json.loads((output / "evaluation.json").read_text())


def rows(domain: str, runs: list[dict]) -> list[str]:
    """The table's rows of one domain."""
    ends = {
        "before": [run["before"] for run in runs],
        "tuned": [run["extra"]["wise_ft"]["tuned"] for run in runs],
        "merged": [run["after"] for run in runs],
    }
    gain = mean(score[KEY] for score in ends["tuned"]) - ends["before"][0][KEY]
    lines = []
    for name, scores in ends.items():
        own = [100 * score[KEY] for score in scores]
        general = [100 * score[f"general/{KEY}"] for score in scores]
        share = (mean(own) / 100 - ends["before"][0][KEY]) / gain if name != "before" else None
        alphas = ", ".join(f"{run['extra']['wise_ft']['alpha']:.3g}" for run in runs) if name == "merged" else ""
        lines.append(
            f"| {domain} | {name} | {_told(own)} | {_told(general)} | {'' if share is None else f'{share:.0%}'} | {alphas} |"
        )
    return lines


def _told(values: list[float]) -> str:
    spread = f" ({min(values):.1f} to {max(values):.1f})" if max(values) - min(values) > 0.05 else ""
    return f"{mean(values):.1f}{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domains", nargs="+", default=["scientific", "medical"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="keep the runs here; finished ones are not repeated")
    parser.add_argument("extra", nargs="*", help="after --: options for the runs")
    options = parser.parse_args()
    print("| domain | heads | domain R@10 (%) | general R@10 (%) | share of the gain | alpha |")
    print("|:--|:--|--:|--:|--:|:--|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for domain in options.domains:
            runs = [finetune(domain, seed, options, folder) for seed in options.seeds]
            print("\n".join(rows(domain, runs)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
