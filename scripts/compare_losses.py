"""Losses against one another on one dataset, over several seeds, paired: the same seed has the same data order.

    python scripts/compare_losses.py --domain industrial --dataset DATA/industrial
    python scripts/compare_losses.py --domain medical --dataset DATA/medical --losses plain caption terms --seeds 0 1 2
    python scripts/compare_losses.py --domain mine.yaml --dataset DATA --settings mine.yaml -- --num_train_epochs 4

Each run is the ordinary command with the starter and the domain's defaults but for the loss; what stands after `--` is
added to it. `--settings` names a YAML file of more losses, `name: {loss: info_nce, loss_settings: {...}}`. Prints a
Markdown table: the mean over seeds, the mean difference from the first loss with its standard error, and in how many
seeds it was better. "mean recall" is the average of recall@1, 5 and 10 of both directions. Finished runs in --output are not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from hf_clip_domain.evaluation import EvaluationReport

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.py"
METRICS = {
    "mean recall": "mean recall",
    "image_to_text/recall@1": "I→T R@1",
    "text_to_image/recall@1": "T→I R@1",
    "text_to_image/recall@10": "T→I R@10",
    "image_to_text/recall@10": "I→T R@10",
    "text_to_image/map_by_label": "T→I mAP by label",
    "image_to_text/map_by_label": "I→T mAP by label",
}


def nce(**settings) -> dict:
    return {"loss": "info_nce", "loss_settings": settings}


def nce_term(**settings) -> dict:
    return {"name": "info_nce", "weight": 0.5, **settings}


LOSSES = {
    "plain": nce(positives={}),
    "caption": nce(positives={"caption": 1}),
    "label": nce(positives={"caption": 1, "label": 0.1}),
    "label strong": nce(positives={"caption": 1, "label": 0.3}),
    "label, hard": nce(positives={"caption": 1, "label": 0.1}, negatives={"kind": "hard", "ratio": 0.5}),
    "hard": nce(negatives={"kind": "hard", "ratio": 0.5}),
    "weighted": nce(negatives={"kind": "weighted", "beta": 0.25}),
    "decoupled": nce(negatives={"decoupled": True}),
    "smooth": nce(label_smoothing=0.1),
    "terms": nce(positives={"caption": 1, "terms": 0.2}),
    "chapter": nce(positives={"caption": 1, "label": 0.05}),
    "scales": nce(temperature_scales=[1.0, 0.3]),
    "siglip": {"loss": "siglip", "loss_settings": {}},
    # What the industrial domain uses: labels as positives where a text is chosen for a picture, captions alone backwards.
    "label forward": {
        "loss": "sum",
        "loss_settings": {
            "terms": [
                nce_term(image_to_text_weight=1, positives={"caption": 1, "label": 0.3}),
                nce_term(image_to_text_weight=0, positives={"caption": 1}),
            ]
        },
    },
}


def run(options, name: str, loss: dict, seed: int) -> dict[str, float]:
    folder = options.output / Path(options.domain).stem / name.replace(" ", "_").replace(",", "") / f"seed{seed}"
    if not (folder / "evaluation.json").exists():
        command = [sys.executable, str(RECIPE), "--domain", options.domain, "--dataset", str(options.dataset)]
        command += ["--model_name_or_path", "starter", "--output_dir", str(folder), "--seed", str(seed)]
        command += [
            "--precision",
            "fp32",
            "--probe_dataset",
            "none",
        ]  # the same on every machine, and no more than is shown
        command += [
            "--loss",
            loss["loss"],
            "--loss_settings",
            yaml.safe_dump(loss["loss_settings"], default_flow_style=True),
        ]
        subprocess.run([*command, *options.extra], check=True, stdout=subprocess.DEVNULL)
    scores = EvaluationReport.load(folder / "evaluation.json").after
    recalls = [
        scores[f"{direction}/recall@{k}"] for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]
    return {**scores, "mean recall": statistics.mean(recalls)}


def table(results: dict[str, dict[int, dict[str, float]]]) -> str:
    first = next(iter(results))
    metrics = [key for key in METRICS if all(key in scores for runs in results.values() for scores in runs.values())]
    lines = ["| loss | " + " | ".join(METRICS[key] for key in metrics) + " |", "|:--|" + "--:|" * len(metrics)]
    for name, runs in results.items():
        cells = []
        for key in metrics:
            values = [100 * scores[key] for scores in runs.values()]
            cell = f"{statistics.mean(values):.1f}"
            if name != first:
                changes = [100 * (scores[key] - results[first][seed][key]) for seed, scores in runs.items()]
                error = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else float("nan")
                better = sum(change > 0 for change in changes)
                cell += f" ({statistics.mean(changes):+.1f} ± {error:.1f}, {better}/{len(changes)})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--losses", nargs="+", default=["plain", "caption", "label"])
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/compare_losses"))
    parser.add_argument("extra", nargs="*", help="after --: options for the runs")
    options = parser.parse_args()
    losses = LOSSES | (yaml.safe_load(options.settings.read_text(encoding="utf-8")) if options.settings else {})
    if unknown := [name for name in options.losses if name not in losses]:
        parser.error(f"unknown loss {unknown[0]!r}: expected some of {', '.join(losses)}")
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in options.losses}
    for seed in options.seeds:
        for name in options.losses:
            results[name][seed] = run(options, name, losses[name], seed)
            print(f"seed {seed}, {name}: done", file=sys.stderr, flush=True)
        print(table(results) + "\n", flush=True)  # after every seed, so that a cut loses nothing


if __name__ == "__main__":
    main()
