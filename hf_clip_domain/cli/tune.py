"""`hf-clip-domain tune`: search the loss's settings by short runs, and write the best for `--config`."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml
from datasets import DatasetDict

from hf_clip_domain._optional import require
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.assembly import build_trainer, load_parts
from hf_clip_domain.cli.options import RunOptions, parse_options
from hf_clip_domain.cli.tracking import tell_revision, tracked
from hf_clip_domain.cli.training_sizes import at_last_size
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.plots import plot_trials
from hf_clip_domain.losses import build_loss
from hf_clip_domain.ops.tracking import Tracker
from hf_clip_domain.training.tuning import LossChoice, TrialResult, best_of, tune_loss

BEST = "tuned.yaml"


def run(argv: list[str]) -> int:
    """Search with the options of a training run; returns the exit status.

    Raises:
        ClipDomainError: input that cannot be used, or a loss without a search space.
    """
    options = parse_options(argv, "tune")
    require("optuna", extra="tune")
    build_loss(options.training.loss, **(options.training.loss_settings or {}))
    with tracked(options, print) as tracker:
        model, processor, pairs = load_parts(options, print)
        tell_revision(options, tracker, print)
        model, processor = at_last_size(model, processor, pairs, options, print)
        tune(model, processor, pairs, options, print, tracker)
    return 0


def tune(model, processor, pairs: DatasetDict, options: RunOptions, say, tracker: Tracker | None = None) -> LossChoice:
    """Search on the validation split, tell the result, keep it in the output folder; the best choice.

    Writes `tuning.db` (the study), `tuning.png` and `tuned.yaml`; `tracker` is told of every trial.

    Raises:
        ClipDomainError: no validation split, or what `tune_loss` raises.
    """
    if "validation" not in pairs:
        raise ClipDomainError("tuning scores on a validation split: give --validation_fraction above 0.")
    if options.data.streaming:
        raise ClipDomainError("tuning repeats short runs over the same rows, which --streaming does not allow.")
    training, folder = options.training, Path(options.training.output_dir)
    labels = [label for label in pairs["train"]["label"] if label is not None]
    with_labels = len(set(labels)) < len(labels) / 2
    relations = ("label",) if with_labels else ()
    say(
        f"Tuning {training.loss} for {training.auto_tune_minutes:g} minutes or {training.auto_tune_trials} short runs of "
        f"{training.auto_tune_epochs:g} epoch(s), scored by recall@10 on {len(pairs['validation'])} validation pairs."
    )

    def build(kind, model_init, args):
        loss = build_loss(training.loss, **(training.loss_settings or {}))
        return build_trainer(
            model, processor, pairs, options, loss, relations=relations, kind=kind, args=args, model_init=model_init
        )

    results = tune_loss(
        build,
        lambda: copy.deepcopy(model),
        training,
        folder,
        with_labels=with_labels,
        metric=lambda scores: (scores["image_to_text/recall@10"] + scores["text_to_image/recall@10"]) / 2,
        identity=_identity(options),
    )
    best = best_of(results)
    for result in results if tracker is not None else ():
        scores = {"recall@10": result.score} if result.score is not None else {}
        tracker.part(f"trial {result.number}", result.choice.to_config(), scores)
    plot_trials([(result.number, result.score) for result in results], folder / "tuning.png")
    command = "# accelerate launch recipes/finetune.py --config tuned.yaml --domain ... --dataset ...\n"
    text = command + yaml.safe_dump(best.choice.to_config(), sort_keys=False)
    (folder / BEST).write_text(text, encoding="utf-8")
    say(table(results, best))
    say(f"Kept in {folder / BEST}; the study, which the same command goes on with, in {folder / 'tuning.db'}.")
    return best.choice


def _identity(options: RunOptions) -> dict:
    """The run's settings but for where it is kept and how long it may search."""
    settings = yaml.safe_load(options.to_yaml())
    for name in ("output_dir", "auto_tune_loss", "auto_tune_minutes", "auto_tune_trials"):
        settings.pop(name, None)
    knowledge = options.domain.to_dict()
    return {**settings, **{f"domain's {name}": knowledge[name] for name in ("image", "augment", "text")}}


def use_tuned_loss(choice: LossChoice, training: ClipTrainingArguments) -> None:
    """The rest of the run goes by the choice; its saved configuration names it, and does not search again."""
    training.loss_settings = choice.settings
    training.temperature = choice.temperature
    training.auto_tune_loss = False


def table(results: list[TrialResult], best: TrialResult) -> str:
    """A line a trial, the best marked."""
    lines = [f"{'trial':>5}  {'recall@10':>9}  {'':8}  settings"]
    for result in results:
        score = f"{100 * result.score:8.2f}%" if result.score is not None else f"{'-':>9}"
        mark = "best" if result is best else "" if result.score is not None else "cut off"
        words = "default" if result.default else _short(result.choice)
        lines.append(f"{result.number:>5}  {score}  {mark:8}  {words}")
    return "\n".join(lines)


def _short(choice: LossChoice) -> str:
    def rounded(value):
        if isinstance(value, float):
            return float(f"{value:.3g}")
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return [rounded(item) for item in value] if isinstance(value, list) else value

    settings = {"temperature": choice.temperature, **choice.settings}
    return yaml.safe_dump(rounded(settings), default_flow_style=True, width=10_000).strip()
