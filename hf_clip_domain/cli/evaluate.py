"""`hf-clip-domain evaluate MODEL`: retrieval scores of any CLIP checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_clip_domain.cli.sources import samples_name, samples_of, split_of
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.device import find_device
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport, RetrievalEvaluator, measure
from hf_clip_domain.evaluation.gallery import Thumbnails, find_cases, to_json
from hf_clip_domain.evaluation.html_report import write_html
from hf_clip_domain.evaluation.resolutions import BUDGET, measure_resolutions
from hf_clip_domain.models.beside import similarity_beside
from hf_clip_domain.models.exported.loading import load_encoder
from hf_clip_domain.models.image_sizes import parse_sizes


def add_parser(commands) -> None:
    """Add `evaluate` to the commands."""
    parser = commands.add_parser(
        "evaluate",
        description="Image-text retrieval of a checkpoint, or of two side by side.",
    )
    parser.add_argument("model", metavar="MODEL", help="Hub id, local folder, 'starter' or 'towers'.")
    parser.add_argument("--before", metavar="MODEL", help="A second checkpoint, shown as the column before.")
    parser.add_argument("--domain", default="general", help="A domain's name or YAML file. Default: general.")
    parser.add_argument("--dataset", help="As for train. Default: the domain's embedded synthetic samples.")
    parser.add_argument("--image_column", help="Column of the picture, when not found by name.")
    parser.add_argument("--text_column", help="Column of the caption(s), when not found by name.")
    parser.add_argument("--split", default="test", help="Which split to score. Default: test.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures or texts embedded at once. Default: 64.")
    parser.add_argument(
        "--resolutions",
        metavar="PIXELS",
        help="Score and time the model at these picture sizes besides, such as 112,160,224,288,336; each is rounded to "
        "whole patches.",
    )
    parser.add_argument(
        "--accuracy_budget",
        type=float,
        default=BUDGET,
        help=f"Points of mean Recall@10 that the recommended size may lose. Default: {BUDGET:g}.",
    )
    parser.add_argument("--output", help="JSON file for the scores.")
    parser.add_argument("--html", help="File for a page with figures, charts and a gallery of pictures.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score, print the table, write the JSON; returns the exit status.

    Raises:
        ClipDomainError: a model or dataset that cannot be read, or a split that is not there.
    """
    sizes = None if args.resolutions is None else parse_sizes(args.resolutions, "--resolutions")
    if not args.accuracy_budget >= 0:
        raise ClipDomainError(f"--accuracy_budget {args.accuracy_budget}: expected points of recall, 0 or more.")
    domain = load_domain(args.domain)
    if args.dataset is None:
        print(f"No --dataset: scoring on the embedded {domain.name} samples, which are synthetic.")
        splits = samples_of(domain)
    else:
        splits = load_pairs(args.dataset, image_column=args.image_column, text_column=args.text_column)
    rows = split_of(splits, args.split)
    scores, embedded = {}, {}
    for role, name in (("before", args.before), ("after", args.model)):
        if name is not None:
            model, processor = load_encoder(name)
            model.to(find_device())
            evaluator = RetrievalEvaluator(
                rows,
                processor,
                domain=domain,
                batch_size=args.batch_size,
                similarity=similarity_beside(name, model),
            )
            embedded[role] = evaluator.embed(model)
            scores[role] = measure(embedded[role], domain)
    report = EvaluationReport.compare(
        scores.get("before"),
        scores["after"],
        dataset=args.dataset or samples_name(domain),
        domain=domain.name,
        model=args.model,
        base_model=args.before or "",
    )
    if sizes is not None:
        found = measure_resolutions(
            embedded["after"],
            model,
            processor,
            domain,
            sizes,
            batch_size=args.batch_size,
            budget=args.accuracy_budget,
        )
        report.extra["resolutions"] = found.to_json()
    print(report.table())
    if args.output or args.html:
        earlier = embedded["before"].ahead if "before" in embedded else None
        report.extra["gallery"] = to_json(find_cases(embedded["after"], earlier))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        report.save(args.output)
    if args.html:
        write_html(report, args.html, picture=Thumbnails(rows))
        print(f"\nAll of it with pictures: {args.html}, for any browser, offline.")
    return 0
