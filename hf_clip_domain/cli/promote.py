"""`hf-clip-domain promote NAME --candidate VERSION|FOLDER`: the gate before a model takes the champion's place."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_clip_domain.cli.assembly import read_pairs
from hf_clip_domain.cli.forgetting import read_probe
from hf_clip_domain.cli.help import complete
from hf_clip_domain.cli.options import RunOptions, parse_options
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.ops.gate import (
    Check,
    Course,
    check_export,
    check_forgetting,
    check_metric,
    check_resolution,
    check_target,
    measure_model,
)
from hf_clip_domain.ops.promotion import (
    CHAMPION,
    LEFT_TAG,
    PROMOTED,
    RECORD_TAG,
    Decision,
    champion,
    move_champion,
    record,
)
from hf_clip_domain.ops.registry import Version, check_name, content_hash, find, register
from hf_clip_domain.serving.registry import resolve
from hf_clip_domain.sharing.publication import Publication
from hf_clip_domain.sharing.run_folder import CONFIGURATION

REFUSED_STATUS = 3
EXIT_CODES = "exit status: 0 promoted (or the champion already), 3 refused by the gate, 1 failed, 2 wrong usage"
_DESCRIPTION = f"""Move the alias '{CHAMPION}' of a registered model to a candidate if it is better than the champion on
the domain's test pairs (paired bootstrap), forgets no more than a budget, holds at the picture size at which it is served,
and embeds the same once exported. Other options are those of train (--domain, --dataset, --probe_dataset,
--forgetting_budget, ...); the candidate's run.yaml gives what is not said here. The registry is that of
MLFLOW_TRACKING_URI."""


def run(argv: list[str]) -> int:
    """Decide with the given command line, and promote; returns the exit status.

    Raises:
        ClipDomainError: a model or data that cannot be read, or a registry that does not answer.
        SystemExit: wrong usage, or `--help`.
    """
    args, rest = _parse(argv)
    check_name(args.name)
    with TemporaryDirectory(prefix="hf-clip-domain-") as scratch:  # for what the registry holds
        return _run(args, rest, scratch)


def _run(args: argparse.Namespace, rest: list[str], scratch: str) -> int:
    version, folder = _candidate(args.name, args.candidate, scratch)
    incumbent = champion(args.name)
    options = _options(folder, args, rest)
    if version is None and not args.dry_run:
        version, _ = register(folder, args.name)
    number = version.number if version is not None else ""
    if incumbent is not None and incumbent.number == number:
        print(f"Version {number} of {args.name} is the {CHAMPION} already.")
        if args.output and RECORD_TAG in incumbent.tags:
            _write(incumbent.tags[RECORD_TAG] + "\n", args.output)
        return 0
    checks = _standing(version) or _checks(args, options, folder, incumbent, scratch)
    decision = Decision.of(
        args.name,
        number,
        incumbent.number if incumbent is not None else "",
        checks,
        settings=_settings(args, options),
        dry_run=args.dry_run,
    )
    if not args.dry_run:
        record(version, decision)
        if decision.decision == PROMOTED:
            move_champion(version, incumbent)
    write_decision(decision, args.output)
    _print(decision, args.candidate)
    return 0 if decision.decision == PROMOTED else REFUSED_STATUS


def _candidate(name: str, text: str, scratch: str) -> tuple[Version | None, str]:
    """The version (`None` for a folder that is not registered), and the folder of the model."""
    if Path(text).is_dir():
        return find(name, content=content_hash(Publication.of(text))), text
    if not text.isdecimal():
        raise ClipDomainError(f"--candidate {text}: expected the number of a version of {name}, or a folder.")
    version = find(name, number=text)
    if version is None:
        raise ClipDomainError(f"--candidate {text}: {name} has no such version; `register` makes one of a folder.")
    return version, resolve(version.uri, scratch).path


def _standing(version: Version | None) -> list[Check]:
    """A version that people went back from is not put there again by a machine."""
    if version is None or LEFT_TAG not in version.tags:
        return []
    back = f"`hf-clip-domain rollback {version.name} --to {version.number}` makes it champion again"
    told = f"was rolled back {version.tags[LEFT_TAG]}; {back}"
    return [Check("standing", False, told)]


def _checks(
    args: argparse.Namespace, options: RunOptions, folder: str, incumbent: Version | None, scratch: str
) -> list[Check]:
    """Every condition, each from the same measurements."""
    base = args.base or _base_of(folder)
    pairs = read_pairs(options.data, options.domain, None, options.training.seed, smoke=options.smoke)["test"]
    probe = read_probe(options.data, options.domain, options.training.seed, smoke=options.smoke)
    course = Course(
        pairs,
        options.domain,
        probe["test"] if probe is not None else None,
        load_domain(options.data.probe_domain),
        args.resolution,
        options.training.per_device_eval_batch_size,
    )
    candidate = measure_model(folder, course)
    check_metric(args.metric, candidate)
    try:
        at_base = measure_model(resolve(base, scratch).path, course)
    except ClipDomainError as error:
        raise ClipDomainError(f"the base model {base} cannot be measured; --base names another. {error}") from error
    against, before = f"the base model {base} (there is no champion yet)", at_base
    if incumbent is not None:
        against = f"version {incumbent.number}"
        before = measure_model(resolve(incumbent.uri, scratch).path, course)
    return [
        check_target(candidate, before, args.metric, against),
        check_forgetting(candidate, at_base, options.training.forgetting_budget, base),
        check_resolution(candidate, options.training.accuracy_budget),
        check_export(folder, pairs, args.export),
    ]


def _base_of(folder: str) -> str:
    report = Path(folder) / "evaluation.json"
    base = EvaluationReport.load(report).base_model if report.is_file() else ""
    if not base:
        raise ClipDomainError(f"{folder} does not say from which model it was adapted: name that one with --base.")
    return base


def _settings(args: argparse.Namespace, options: RunOptions) -> dict:
    return {
        "domain": options.domain.name,
        "dataset": options.dataset_name,
        "metric": args.metric,
        "resolution": args.resolution,
        "probe_dataset": options.data.probe_dataset,
        "forgetting_budget": options.training.forgetting_budget,
        "accuracy_budget": options.training.accuracy_budget,
    }


def _print(decision: Decision, candidate: str) -> None:
    for check in decision.checks:
        print(check.line())
    who = f"Version {decision.candidate}" if decision.candidate else f"{candidate} (not registered)"
    would = " would be" if decision.dry_run else " is"
    alias = f"models:/{decision.name}@{CHAMPION}"
    if decision.decision == PROMOTED:
        instead = f" in place of {decision.incumbent}" if decision.incumbent else ""
        print(f"{who}{would} promoted: {alias}{instead}.")
    else:
        stays = f"version {decision.incumbent}" if decision.incumbent else "unset"
        print(f"{who}{would} refused: {alias} stays {stays}.")


def write_decision(decision: Decision, output: str | None) -> None:
    """Write `promotion.json`, where it is asked for."""
    if output:
        _write(decision.to_json(), output)


def _write(text: str, output: str) -> None:
    path = Path(output)
    path = path / "promotion.json" if path.is_dir() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="hf-clip-domain promote", description=_DESCRIPTION, epilog=EXIT_CODES, allow_abbrev=False
    )
    complete(parser, "promote")
    parser.add_argument("name", metavar="NAME", help="Of the registered model.")
    parser.add_argument(
        "--candidate",
        required=True,
        metavar="VERSION",
        help="Number of a version, or a folder, which is registered first.",
    )
    parser.add_argument(
        "--metric", default="text_to_image/recall@10", help="To be better by. Default: text_to_image/recall@10."
    )
    parser.add_argument(
        "--resolution",
        type=int,
        help="Side in pixels of the pictures as they are served. Default: each model's own, as `serve` does.",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="Of which forgetting is measured, and the stand-in for a first champion; models:/NAME/VERSION, too. Default: what "
        "the candidate was adapted from.",
    )
    parser.add_argument(
        "--export",
        choices=["onnx", "mlx", "none"],
        default="onnx",
        help="Which export must embed alike. Default: onnx.",
    )
    parser.add_argument("--dry_run", action="store_true", help="Decide and print; change nothing.")
    parser.add_argument("--output", help="JSON file for the decision; promotion.json in it where it is a folder.")
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        parser.error(f"the name comes first: promote NAME --candidate VERSION {argv[0]} ...")
    return parser.parse_known_args(argv)


def _options(folder: str, args: argparse.Namespace, rest: list[str]) -> RunOptions:
    """The options of the run that made the candidate, as changed on the command line."""
    if args.resolution is not None and args.resolution < 1:
        raise ClipDomainError(f"--resolution {args.resolution}: expected a side in pixels.")
    before = ["--output_dir", folder]
    if (Path(folder) / CONFIGURATION).is_file():
        before += ["--config", str(Path(folder) / CONFIGURATION)]
    elif (Path(folder) / "domain.yaml").is_file():
        before += ["--domain", str(Path(folder) / "domain.yaml")]
    return parse_options([*before, *rest])
