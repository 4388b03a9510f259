"""`hf-clip-domain merge BASE TUNED ...`: a model between base and tuned one, that forgets no more than a budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_clip_domain.cli.assembly import read_pairs
from hf_clip_domain.cli.forgetting import RunScores, similarity_path, summary
from hf_clip_domain.cli.help import complete
from hf_clip_domain.cli.options import RunOptions, parse_options
from hf_clip_domain.cli.outcome import Outcome
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.wise_ft import parse_alphas
from hf_clip_domain.models.beside import similarity_beside
from hf_clip_domain.models.image_positions import at_image_size, image_size_of
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.merging import greedy_soup, merge_weights, uniform_soup
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.sharing.run_folder import CONFIGURATION

_DESCRIPTION = """Interpolate weights between a base model and one tuned from it (WiSE-FT), or a soup of several. What to
try is scored on the validation splits of the domain and of the probe; the final figures are of the test splits, which
choose nothing. Other options are those of train (--domain, --dataset, --probe_dataset, --forgetting_budget, ...);
where TUNED is the folder of a run, its run.yaml gives what is not said here."""


def run(argv: list[str]) -> int:
    """Merge with the given command line; returns the exit status.

    Raises:
        ClipDomainError: models that do not fit each other, or data to choose by is missing.
        SystemExit: wrong usage, or `--help`.
    """
    args, options = _parse(argv)
    alphas = parse_alphas(args.alphas)
    output = Path(args.output)
    if any(Path(name).exists() and output.resolve() == Path(name).resolve() for name in (args.base, *args.tuned)):
        raise ClipDomainError(f"--output {output} is the folder of a model to merge, and would replace it.")

    loaded = [load_model(name) for name in args.tuned]
    processor = loaded[0][1]
    similarities = [similarity_beside(name, model) for name, (model, _) in zip(args.tuned, loaded, strict=True)]
    model, base_processor = load_model(args.base)
    if (length := text_capacity(loaded[0][0])) > text_capacity(model):  # stretched as the run did before it trained
        model, base_processor = load_model(args.base, max_text_length=length)
    if (size := image_size_of(loaded[0][0])) != image_size_of(model):  # likewise for --resolutions
        model, _ = at_image_size(model, base_processor, size)
    similarity_at = similarity_path(similarity_beside(args.base, model), similarities[0])
    if len(loaded) > 1 and any(similarity is not similarities[0] for similarity in similarities):
        raise ClipDomainError(
            "the tuned models compare differently or by learned similarities: merge them one at a time."
        )
    weights = [own.state_dict() for own, _ in loaded]
    base = merge_weights(model, weights[0], 0)  # refused before the data is read

    pairs = read_pairs(options.data, options.domain, None, options.training.seed, smoke=options.smoke)
    scores = RunScores(options, processor, pairs)
    scores.check_choice("merge")
    model.to(options.training.device)
    if args.soup == "greedy" and len(loaded) > 1:
        tuned, members = greedy_soup(weights, scores.soup_score(model, similarities[0]))
        print(f"Greedy soup of {len(members)} of {len(weights)}: {', '.join(args.tuned[index] for index in members)}.")
    else:
        tuned = uniform_soup(weights)
    chosen = scores.choose_merge(model, base, tuned, similarity_at, options.training.forgetting_budget, alphas)
    print(f"{chosen.table()}\n\n{chosen.verdict()}\n")

    tested = {}
    for role, own, alpha in (("before", base, 0), ("tuned", tuned, 1), ("after", None, chosen.best.alpha)):
        model.load_state_dict(own if own is not None else merge_weights(base, tuned, alpha))
        tested[role] = scores.on_test(model, similarity_at(alpha))
    told = summary(**{role: measured.metrics for role, measured in tested.items()})
    model.cpu().save_pretrained(output)
    outcome = Outcome(
        model,
        processor,
        similarity_at(chosen.best.alpha),
        tested["before"],
        tested["after"],
        sweep=chosen,
        tuned=tested["tuned"],
        notes=[chosen.verdict(), told],
    )
    report = outcome.report(options, scores, args.base)
    outcome.write(output, report, options, pairs, configuration=options.to_yaml())
    print(f"{report.table()}\n\n{told}\n\nSaved to {output}.")
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, RunOptions]:
    """The command's own options, and those of the run that tuned the first model, as changed on the command line."""
    parser = argparse.ArgumentParser(prog="hf-clip-domain merge", description=_DESCRIPTION, allow_abbrev=False)
    complete(parser, "merge")
    parser.add_argument("base", metavar="BASE", help="The model before: Hub id, folder, or 'starter'.")
    parser.add_argument("tuned", metavar="TUNED", nargs="+", help="The model after, or several to make a soup of.")
    parser.add_argument("--output", required=True, help="Folder for the merged model and its card.")
    parser.add_argument(
        "--alphas",
        default="auto",
        help="Shares of the tuned model to try, such as 0,0.25,0.5,1. Default: auto, five and then three more where the "
        "budget ends.",
    )
    parser.add_argument(
        "--soup",
        choices=["greedy", "uniform"],
        default="greedy",
        help="Of several tuned models: the mean of those that help on the validation split, or of all. Default: greedy.",
    )
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        parser.error(f"the models come first: merge BASE TUNED ... {argv[0]} ...")
    args, rest = parser.parse_known_args(argv)
    folder = Path(args.tuned[0])
    before = ["--wise_ft", "true", "--model_name_or_path", args.base, "--output_dir", args.output]
    before += ["--save_adapter", "merged"]
    if (folder / CONFIGURATION).is_file():
        before += ["--config", str(folder / CONFIGURATION)]
    elif (folder / "domain.yaml").is_file():
        before += ["--domain", str(folder / "domain.yaml")]
    return args, parse_options([*before, *rest])
