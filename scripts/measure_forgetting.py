"""What adapting the starter costs in general recall, and what a merged model (WiSE-FT) gives back at several budgets.

    python scripts/measure_forgetting.py --data DATA                                     # trains on DATA/scientific, ... first
    python scripts/measure_forgetting.py --data DATA --tuned medical=OUT scientific=OUT2  # merges finished runs' models
    python scripts/measure_forgetting.py --data DATA --domains medical -- --num_train_epochs 20

Seven models from starter to tuned one are scored on the validation splits of DATA/<domain> and DATA/general. For each
budget the best of them within it is chosen there, as `--wise_ft` does, and every figure of the printed table is of their
test splits: mean Recall@10 of both directions. What stands after `--` is added to the training command. `--plots FOLDER`
keeps the validation curves as forgetting_<domain>.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_clip_domain.cli.assembly import read_pairs
from hf_clip_domain.cli.forgetting import RunScores, similarity_path
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.evaluation.forgetting import MEAN_RECALL, mean_recall
from hf_clip_domain.evaluation.plots import plot_forgetting
from hf_clip_domain.evaluation.wise_ft import Sweep, choose
from hf_clip_domain.models.beside import similarity_beside
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.merging import merge_weights
from hf_clip_domain.sharing.run_folder import CONFIGURATION

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.py"
BASE = "starter"
ALPHAS = [0, 0.25, 0.375, 0.5, 0.625, 0.75, 1]
COLUMNS = ("domain", "budget", "alpha", "domain: base", "tuned", "merged", "gain kept")
COLUMNS += ("general: base", "tuned", "merged", "retained, tuned", "retained, merged")
Scores = dict[float, tuple[float, float]]  # by alpha, on the test splits: domain, general


def train(domain: str, data: Path, output: Path, extra: list[str]) -> None:
    command = [sys.executable, str(RECIPE), "--domain", domain, "--dataset", str(data / domain)]
    command += ["--model_name_or_path", BASE, "--probe_dataset", "none", "--precision", "fp32"]
    subprocess.run([*command, "--output_dir", str(output), *extra], check=True, stdout=subprocess.DEVNULL)


def merged_models(domain: str, data: Path, tuned: Path, rows: int, budgets: list[float]) -> tuple[list[Sweep], Scores]:
    """What each budget chooses of one curve on the validation splits, and the test scores of these and of both ends."""
    options = ["--config", str(tuned / CONFIGURATION), "--dataset", str(data / domain), "--precision", "fp32"]
    options += ["--probe_dataset", str(data / "general"), "--probe_rows", str(rows)]
    options = parse_options(options)
    model, processor = load_model(str(tuned))
    base, _ = load_model(BASE)
    similarity = similarity_path(similarity_beside(BASE, base), similarity_beside(str(tuned), model))
    ends = base.state_dict(), merge_weights(model, model, 1)
    scores = RunScores(options, processor, read_pairs(options.data, options.domain, None, 0, smoke=False))
    curve = scores.choose_merge(model, *ends, similarity, 100, ALPHAS)
    choices, tested = [choose(curve.points, budget) for budget in budgets], {}
    for alpha in sorted({0, 1, *(choice.best.alpha for choice in choices)}):
        model.load_state_dict(merge_weights(*ends, alpha))
        found = scores.on_test(model, similarity(alpha)).metrics
        tested[alpha] = mean_recall(found), found[MEAN_RECALL]
    return choices, tested


def row(domain: str, choice: Sweep, tested: Scores) -> str:
    """A line of the table, in percent."""
    alpha = choice.best.alpha
    own, general = zip(tested[0], tested[1], tested[alpha], strict=True)
    kept = (own[2] - own[0]) / (own[1] - own[0])
    cells = [domain, f"{choice.budget:g}", f"{alpha:.3g}", *(f"{value:.1%}" for value in own), f"{kept:.0%}"]
    cells += [f"{value:.1%}" for value in (*general, general[1] / general[0], general[2] / general[0])]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one dataset a domain, and general")
    parser.add_argument("--domains", nargs="+", default=["scientific", "medical", "industrial"])
    parser.add_argument(
        "--tuned", nargs="+", default=[], metavar="DOMAIN=FOLDER", help="finished runs to merge instead"
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=float,
        default=[0.5, 1.0, 1.5, 2.0],
        help="points of general recall to give up; the curve shows the last",
    )
    parser.add_argument("--rows", type=int, default=500, help="most general rows of each split; default 500")
    parser.add_argument("--plots", type=Path, help="keep the curves here")
    parser.add_argument("extra", nargs="*", help="after --: options for the training runs")
    options = parser.parse_args()
    jobs = [(word.partition("=")[0], Path(word.partition("=")[2])) for word in options.tuned]
    print(f"| {' | '.join(COLUMNS)} |\n|:--|{'--:|' * (len(COLUMNS) - 1)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for domain, tuned in jobs or [(domain, Path(temporary) / domain) for domain in options.domains]:
            if not jobs:
                train(domain, options.data, tuned, options.extra)
            choices, tested = merged_models(domain, options.data, tuned, options.rows, options.budgets)
            for choice in choices:
                print(row(domain, choice, tested), flush=True)
            print(f"\n{domain}, validation splits:\n{choices[-1].table()}", file=sys.stderr, flush=True)
            if options.plots:
                options.plots.mkdir(parents=True, exist_ok=True)
                shown = choices[-1]
                floor = shown.points[0].general - shown.budget / 100
                plot_forgetting(shown.points, shown.best, floor, options.plots / f"forgetting_{domain}.png")


if __name__ == "__main__":
    main()
