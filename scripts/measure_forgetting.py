"""What adapting the starter costs in general recall, and what a merged model (WiSE-FT) gives back.

    python scripts/measure_forgetting.py --data DATA                              # trains on DATA/scientific, ... first
    python scripts/measure_forgetting.py --data DATA --tuned medical=OUT medical=OUT2   # merges finished runs' models
    python scripts/measure_forgetting.py --data DATA --domains medical -- --num_train_epochs 20

Each run is the ordinary command with `--wise_ft true` (of finished runs: `hf-clip-domain merge starter OUT`) and general
pairs as the probe: alpha is chosen on the validation splits of DATA/<domain> and DATA/general, and every figure of the
printed table is of their test splits. What stands after `--` is added to the training command. `--plots FOLDER` keeps
the curves as forgetting_<domain>.png.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.evaluation.forgetting import MEAN_RECALL, RETAINED, mean_recall

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.py"
COLUMNS = ("domain", "alpha", "domain: base", "tuned", "merged", "gain kept", "general: base", "tuned", "merged")
COLUMNS += ("retained, tuned", "retained, merged")


def merged_run(domain: str, data: Path, tuned: Path | None, budget: float, output: Path, extra: list[str]) -> None:
    """Train and merge, or merge what was trained."""
    command = [sys.executable]
    if tuned is None:
        command += [str(RECIPE), "--domain", domain, "--model_name_or_path", "starter", "--wise_ft", "true"]
        command += ["--output_dir", str(output), *extra]
    else:
        command += ["-m", "hf_clip_domain.cli.main", "merge", "starter", str(tuned), "--output", str(output)]
    command += ["--dataset", str(data / domain), "--probe_dataset", str(data / "general"), "--probe_rows", "500"]
    subprocess.run([*command, "--forgetting_budget", str(budget)], check=True, stdout=subprocess.DEVNULL)


def row(name: str, report: EvaluationReport) -> str:
    """A line of the table, in percent."""
    choice = report.extra["wise_ft"]
    sides = (report.before, choice["tuned"], report.after)
    own, general = [mean_recall(side) for side in sides], [side[MEAN_RECALL] for side in sides]
    kept = (own[2] - own[0]) / (own[1] - own[0])
    cells = [name, f"{choice['alpha']:.3g}", *(f"{value:.1%}" for value in own), f"{kept:.0%}"]
    cells += [f"{value:.1%}" for value in (*general, choice["tuned"][RETAINED], report.after[RETAINED])]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one dataset a domain, and general")
    parser.add_argument("--domains", nargs="+", default=["scientific", "medical", "industrial"])
    parser.add_argument(
        "--tuned", nargs="+", default=[], metavar="DOMAIN=FOLDER", help="finished runs to merge instead"
    )
    parser.add_argument("--budget", type=float, default=0.4, help="points of general recall to give up; default 0.4")
    parser.add_argument("--output", type=Path, help="keep the runs here")
    parser.add_argument("--plots", type=Path, help="keep the curves here")
    parser.add_argument("extra", nargs="*", help="after --: options for the training runs")
    options = parser.parse_args()
    jobs = [(word.partition("=")[0], Path(word.partition("=")[2])) for word in options.tuned]
    jobs = jobs or [(domain, None) for domain in options.domains]
    print(f"| {' | '.join(COLUMNS)} |\n|:--|{'--:|' * (len(COLUMNS) - 1)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for number, (domain, tuned) in enumerate(jobs):
            folder = (options.output or Path(temporary)) / f"{domain}-{number}"
            merged_run(domain, options.data, tuned, options.budget, folder, options.extra)
            print(row(domain, EvaluationReport.load(folder)), flush=True)
            if options.plots:
                options.plots.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / "forgetting.png", options.plots / f"forgetting_{domain}.png")


if __name__ == "__main__":
    main()
