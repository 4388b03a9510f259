"""`hf-clip-domain monitor MODEL --statistics DIR`: does the traffic still look like what the model was adapted to?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.device import find_device
from hf_clip_domain.domains import Domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.notification import Notifier, check_target
from hf_clip_domain.ops.drift.detector import Rule, check_rule, judge
from hf_clip_domain.ops.drift.feedback import Degradation, measure_feedback
from hf_clip_domain.ops.drift.making import identity, make_reference
from hf_clip_domain.ops.drift.page import render
from hf_clip_domain.ops.drift.reference import REFERENCE_FILE, Reference, from_windows
from hf_clip_domain.ops.drift.report import DriftReport, figures_of, write_outputs
from hf_clip_domain.ops.drift.suggestion import suggest
from hf_clip_domain.ops.drift.windows import pooled, read_windows
from hf_clip_domain.serving.registry import local_name
from hf_clip_domain.serving.sketches import buckets

DRIFT = 3
EXIT_CODES = "exit status: 0 no drift, 3 drift or measured degradation, 1 failed, 2 wrong usage"


def add_parser(commands) -> None:
    """Add `monitor` to the commands."""
    parser = commands.add_parser(
        "monitor",
        help="Compare what a server was asked with what the model was adapted to.",
        description="Compare a server's request statistics with the model's reference: images, texts and alignment apart.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "model", metavar="MODEL", help=f"Local folder, Hub id, 'starter', models:/NAME@ALIAS, or a {REFERENCE_FILE}."
    )
    parser.add_argument("--statistics", metavar="DIR", help="Folder of windows that the server wrote.")
    parser.add_argument("--reference", metavar="FILE", help=f"Default: {REFERENCE_FILE} in the model's folder.")
    parser.add_argument(
        "--feedback", metavar="PAIRS", help="Labelled pairs (any source as for train): measure with them."
    )
    parser.add_argument(
        "--output", metavar="DIR", help="Write drift.json, drift.html, drift.prom, drift_rules.yaml here."
    )
    parser.add_argument("--webhook", metavar="URL", help="POST the verdict when there is drift; or 'command: PROGRAM'.")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="Look again so often, until interrupted.")
    parser.add_argument(
        "--false_alarms", type=float, default=0.05, help="Chance of any within --horizon. Default: 0.05."
    )
    parser.add_argument("--horizon", type=int, default=20, help="Judge the newest so many windows. Default: 20.")
    making = parser.add_argument_group("making a reference")
    making.add_argument(
        "--make_reference",
        action="store_true",
        help="Write the reference instead: of --dataset's held-out pairs, or of --statistics from when all was well.",
    )
    making.add_argument("--dataset", help="As for train; its validation and test pairs are taken.")
    making.add_argument("--domain", help="A domain's name or YAML file. Default: the model's own, or general.")
    making.add_argument("--image_column", help="Column of the picture, when not found by name.")
    making.add_argument("--text_column", help="Column of the caption(s), when not found by name.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look once or again and again, print, write, tell; returns the exit status.

    Raises:
        ClipDomainError: a reference, a model or statistics that cannot be used.
    """
    if args.make_reference:
        return _make(args)
    if args.statistics is None:
        raise ClipDomainError("--statistics DIR is needed: the folder of windows that the server wrote.")
    if args.watch is not None and not args.watch > 0:
        raise ClipDomainError(f"--watch {args.watch:g}: expected seconds above 0.")
    if args.webhook:
        try:
            check_target(args.webhook)
        except ClipDomainError as error:
            raise ClipDomainError(str(error).replace("--notify", "--webhook")) from error
    rule = Rule(args.false_alarms, args.horizon)
    args.model = local_name(args.model)
    reference = Reference.load(_reference_file(args))
    check_rule(reference, rule)
    model = reference.meta["model"] if args.model.endswith(".npz") else args.model
    feedback = None
    if args.feedback:
        embedder = _embedder(model, args.domain or reference.meta["domain"])
        feedback = _feedback(args, embedder, reference)
    notifier = Notifier(args.webhook) if args.webhook else None
    told: tuple[str, ...] | None = None
    try:
        while True:
            try:
                report = _look(args, reference, rule, model, feedback)
            except ClipDomainError as error:
                if args.watch is None:
                    raise
                print(error, flush=True)
            else:
                state = (*sorted(report.drifted), *(["feedback"] if feedback and feedback.degraded else []))
                if notifier is not None and state and state != told:
                    notifier.send(
                        {"event": "drift", "model": model, "drifted": list(state), "summary": report.summary()}
                        | {"command": report.suggestion.command, "false_alarms": rule.false_alarms}
                    )
                told = state
                if args.watch is None:
                    return DRIFT if report.found else 0
            time.sleep(args.watch)
    finally:
        if notifier is not None:
            notifier.close()


def _look(
    args: argparse.Namespace, reference: Reference, rule: Rule, model: str, feedback: Degradation | None
) -> DriftReport:
    meta = reference.meta
    windows, skipped = read_windows(
        args.statistics, revision=meta["revision"], resolution=meta["resolution"], newest=rule.horizon
    )
    looks = judge(reference, windows, rule)
    alarm = next((look for look in reversed(looks) if look.drifted), looks[-1])
    shown = pooled([window for window in windows if window.name in alarm.windows])
    drifted = {name for look in looks for name in look.drifted}
    decode = _decoder(model) if drifted else None
    report = DriftReport(
        meta,
        rule,
        looks,
        skipped,
        suggest(reference, shown, drifted, decode),
        figures_of(reference, shown),
        feedback,
    )
    print(f"{report.table()}\n{report.summary()}", flush=True)
    if args.output:
        try:
            write_outputs(report, Path(args.output), render(report, reference, shown))
        except OSError as error:
            raise ClipDomainError(f"--output {args.output} cannot be written: {error.strerror or error}.") from error
    return report


def _reference_file(args: argparse.Namespace) -> Path:
    if args.reference:
        return Path(args.reference)
    return Path(args.model) if args.model.endswith(".npz") else Path(args.model) / REFERENCE_FILE


def _make(args: argparse.Namespace) -> int:
    if args.model.endswith(".npz"):
        raise ClipDomainError(f"--make_reference needs the model, not {args.model}; --reference says where to write.")
    if args.reference is None and not Path(args.model).is_dir():
        raise ClipDomainError(f"{args.model} is no folder: say with --reference FILE where to keep its reference.")
    embedder = _embedder(args.model, args.domain)
    if args.statistics and args.dataset:
        raise ClipDomainError("--make_reference is made of --dataset or of --statistics: give one of them.")
    if args.statistics:
        windows, skipped = read_windows(args.statistics, **identity(embedder))
        domain = embedder.domain.name if embedder.domain else "general"
        meta = {**identity(embedder), "model": args.model, "domain": domain, "dataset": args.statistics}
        reference = from_windows(pooled(windows), meta)
        for name, reason in skipped.items():
            print(f"Left out {name}: {reason}")
    else:
        pairs = _pairs(args, embedder.domain)
        held_out = [rows for name, rows in pairs.items() if name != "train"]
        if not held_out:
            raise ClipDomainError(f"--dataset {args.dataset}: no validation or test pairs are held out.")
        reference = make_reference(
            embedder,
            concatenate_datasets(held_out),
            train=pairs.get("train"),
            model=args.model,
            dataset=args.dataset or "embedded samples",
        )
    file = _reference_file(args)
    reference.save(file)
    print(f"Wrote {file}: {', '.join(reference.tests)} of {reference.meta['origin']}.")
    return 0


def _pairs(args: argparse.Namespace, domain: Domain | None) -> Any:
    if args.dataset is None:
        print("No --dataset: a reference of the embedded samples, which are synthetic.")
        return load_samples(domain.name if domain is not None else "general")
    return load_pairs(args.dataset, image_column=args.image_column, text_column=args.text_column)


def _feedback(args: argparse.Namespace, embedder: ClipEmbedder, reference: Reference) -> Degradation:
    if identity(embedder)["revision"] != reference.meta["revision"]:
        raise ClipDomainError(f"{args.model} is not the model that the reference was made with; make it again.")
    pairs = load_pairs(
        args.feedback,
        image_column=args.image_column,
        text_column=args.text_column,
        validation_fraction=0,
        test_fraction=0,
    )
    return measure_feedback(embedder, concatenate_datasets(list(pairs.values())), reference)


def _embedder(model: str, domain: str | None) -> ClipEmbedder:
    return ClipEmbedder.from_pretrained(model, domain=domain, device=find_device())


def _decoder(model: str):
    """From hashed tokens back to words, where the tokenizer can be had; unseen terms are not named otherwise."""
    from transformers import AutoTokenizer

    from hf_clip_domain.models.folders import find_folder

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(find_folder(model) or model))
    except (ClipDomainError, OSError, ValueError):
        return None
    words: dict[int, list[str]] = {}
    for number in range(len(tokenizer)):
        words.setdefault(int(buckets([number])[0]), []).append(number)
    return lambda bucket: [tokenizer.decode([number]).strip() for number in words.get(bucket, [])]
