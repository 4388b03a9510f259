"""Zero-shot against adapted retrieval on real pairs, one fine-tuning run a domain, with the starter model.

    python scripts/measure_domains.py --data DATA                     # DATA/scientific, DATA/medical, DATA/industrial
    python scripts/measure_domains.py --data DATA --from_scratch      # also from random weights of the same architecture
    python scripts/measure_domains.py --data DATA --domains medical -- --num_train_epochs 20
    python scripts/measure_domains.py --data DATA --write docs/results.md   # puts the tables between that file's markers

Each run is the ordinary command (`recipes/finetune.py --domain D --dataset DATA/D --model_name_or_path starter`) with
the domain's own defaults; what stands after `--` is added to it. Prints a Markdown table a domain and the minutes taken;
the scores of the test split are those of each run's evaluation.json. The starter is small: the figures show what
adaptation adds to it, not what a ViT-B/32 reaches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import CLIPModel

from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.models.loading import load_model

START, END = "<!-- domains: start -->", "<!-- domains: end -->"
RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.py"


def finetune(domain: str, dataset: Path, model: str, output: Path, extra: list[str]) -> tuple[EvaluationReport, float]:
    """One run; returns its report and the minutes it took, set-up and both evaluations included."""
    command = [sys.executable, str(RECIPE), "--domain", domain, "--dataset", str(dataset)]
    command += ["--model_name_or_path", model, "--output_dir", str(output), "--precision", "fp32"]
    command += ["--probe_dataset", "none", *extra]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return EvaluationReport.load(output / "evaluation.json"), (time.perf_counter() - start) / 60


def random_twin(folder: Path) -> Path:
    """The starter's architecture and tokenizer with fresh random weights."""
    model, processor = load_model("starter")
    torch.manual_seed(0)
    CLIPModel(model.config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_between_markers(file: Path, body: str) -> None:
    before, start, rest = file.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"{file} lacks the lines {START} and {END}, between which the tables are to stand.")
    file.write_text(f"{before}{START}\n{body}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one dataset a domain")
    parser.add_argument("--domains", nargs="+", default=["scientific", "medical", "industrial"])
    parser.add_argument("--from_scratch", action="store_true", help="also train the architecture from random weights")
    parser.add_argument("--output", type=Path, help="keep the runs here")
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this file (docs/results.md)")
    parser.add_argument("extra", nargs="*", help="after --: options for the runs")
    options = parser.parse_args()
    if options.write:
        write_between_markers(options.write, "")
    sections: list[str] = []

    def tell(text: str) -> None:
        print(f"{text}\n", flush=True)
        sections.append(text)
        if options.write:  # at once: a later run that fails loses nothing
            write_between_markers(options.write, "\n\n".join(sections))

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        for domain in options.domains:
            dataset = options.data / domain
            report, minutes = finetune(domain, dataset, "starter", folder / domain, options.extra)
            tell(f"**{domain}**, {minutes:.1f} minutes:\n\n{report.markdown().strip()}")
            key = "text_to_image/recall@10"
            ratio = report.after[key] / max(report.before[key], 1e-9)
            tell(f"Text-to-image Recall@10 grew {ratio:.2f} times.")
            if options.from_scratch:
                twin = random_twin(folder / f"{domain}-random")
                scratch, minutes = finetune(domain, dataset, str(twin), folder / f"{domain}-scratch", options.extra)
                tell(
                    f"The same architecture from random weights, {minutes:.1f} minutes: text-to-image Recall@10 "
                    f"{scratch.after[key]:.1%}, against {report.after[key]:.1%} from the starter."
                )


if __name__ == "__main__":
    main()
