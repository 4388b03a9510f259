"""`hf-clip-domain compare A B C --datasets D1 D2`: several models on several sets, and which differences are real.

`hf-clip-domain compare --experiment NAME`: the tracked runs of an experiment, and what differed between them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.samples import available_samples, load_samples
from hf_clip_domain.device import find_device
from hf_clip_domain.domains import Domain, load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import RetrievalEvaluator
from hf_clip_domain.evaluation.compare import Comparison, compare
from hf_clip_domain.evaluation.embedded import measure_retrieval
from hf_clip_domain.evaluation.html_compare import comparison_page
from hf_clip_domain.models.beside import similarity_beside
from hf_clip_domain.models.exported.loading import load_encoder
from hf_clip_domain.ops.experiment import Experiment, read_experiment
from hf_clip_domain.ops.experiment_page import experiment_page
from hf_clip_domain.page import save_page

# The smallest p value is 2 / (replicates + 1), and Holm multiplies it by the number of comparisons.
REPLICATES = 5000


def add_parser(commands) -> None:
    """Add `compare` to the commands."""
    parser = commands.add_parser(
        "compare",
        description="A matrix of models and datasets with confidence intervals; differences by paired bootstrap.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="Hub ids, local folders, or 'starter'.")
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="DOMAIN[=DATASET]",
        help="A domain for its embedded samples, or domain=path (or Hub id) for your data, as for train.",
    )
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help="In place of models: the finished runs of MLFLOW_TRACKING_URI's experiment.",
    )
    parser.add_argument("--metric", default="text_to_image/recall@10", help="Default: text_to_image/recall@10.")
    parser.add_argument("--split", default="test", help="Which split to score. Default: test.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures or texts embedded at once. Default: 64.")
    parser.add_argument("--output", help="JSON file for the matrix and the differences.")
    parser.add_argument("--html", help="File for the same as a page.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score every model on every set, print the table, write the JSON; returns the exit status.

    Raises:
        ClipDomainError: a model or dataset that cannot be read, named twice, or an unknown metric.
    """
    if args.experiment:
        return _compare_runs(args)
    if not args.models or not args.datasets:
        raise ClipDomainError("compare needs MODEL ... and --datasets, or --experiment NAME.")
    for option, values in (("models", args.models), ("--datasets", args.datasets)):
        if len(set(values)) < len(values):
            raise ClipDomainError(f"{option}: {' '.join(values)} names one twice.")
    sets = {text: _pairs(text, args.split) for text in args.datasets}
    measured: dict[str, dict[str, Any]] = {}
    for name in args.models:
        model, processor = load_encoder(name)
        model.to(find_device())
        similarity = similarity_beside(name, model)
        measured[name] = {}
        for text, (domain, pairs) in sets.items():
            evaluator = RetrievalEvaluator(
                pairs, processor, domain=domain, batch_size=args.batch_size, similarity=similarity
            )
            found = measure_retrieval(evaluator.embed(model), REPLICATES)
            if not args.metric.startswith(("image_to_text/", "text_to_image/")) or args.metric not in found.metrics:
                known = sorted(key for key in found.metrics if key.startswith("text_to_image/"))
                raise ClipDomainError(f"--metric {args.metric}: expected such as {', '.join(known)}.")
            measured[name][text] = found
    return _tell(compare(measured, args.metric), comparison_page, args)


def _compare_runs(args: argparse.Namespace) -> int:
    if args.models or args.datasets:
        raise ClipDomainError("--experiment compares tracked runs: leave out models and --datasets.")
    return _tell(read_experiment(args.experiment, args.metric), experiment_page, args)


def _tell(found: Comparison | Experiment, page: Callable[[Any], str], args: argparse.Namespace) -> int:
    print(found.table())
    if args.output:
        found.save(args.output)
    if args.html:
        save_page(page(found), args.html)
    return 0


def _pairs(text: str, split: str) -> tuple[Domain, Any]:
    """The domain and the rows that one value of `--datasets` names."""
    name, _, source = text.partition("=")
    domain = load_domain(name)
    if source:
        splits = load_pairs(source)
    elif domain.name in available_samples():
        splits = load_samples(domain.name)
    else:
        raise ClipDomainError(f"--datasets {text}: {domain.name} has no embedded samples; give {name}=DATASET.")
    if split not in splits:
        raise ClipDomainError(f"--split {split}: {text} has none; found {', '.join(splits)}.")
    return domain, splits[split]
