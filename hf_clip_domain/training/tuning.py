"""Searching the settings of a loss by short runs, through Trainer's hyperparameter search with Optuna."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from hf_clip_domain._optional import require
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import build_loss
from hf_clip_domain.training.trainer import ClipTrainer

logger = logging.get_logger(__name__)

TUNABLE = ("info_nce", "siglip", "sum")
STUDY = "loss"


@dataclass(frozen=True)
class LossChoice:
    """A loss with its settings and the temperature it starts with (`None`: the model's own)."""

    loss: str
    settings: dict[str, Any]
    temperature: float | None = None

    def to_config(self) -> dict[str, Any]:
        """As `--config` takes it."""
        choice = {"loss": self.loss, "loss_settings": self.settings}
        return choice if self.temperature is None else {**choice, "temperature": self.temperature}


@dataclass(frozen=True)
class TrialResult:
    """One short run: its number, what was tried, the score (`None` if it did not end), and how it ended."""

    number: int
    choice: LossChoice
    score: float | None
    state: str
    default: bool


def suggest(trial: Any, start: LossChoice, with_labels: bool, with_temperature: bool = True) -> LossChoice:
    """A point of the search space around `start`; the trial that carries "default" is `start` itself.

    Searched: the temperature (0.01 to 0.2; not where the model's own is to stay), label smoothing, the weight of the
    directions, the kind of negatives with the ratio and weight of hard ones, a second temperature scale with its weight,
    the weight of equal labels where the data has labels, and the weights of a sum's terms.
    """
    if trial.user_attrs.get("default"):
        return start
    settings = copy.deepcopy(start.settings)
    temperature = trial.suggest_float("temperature", 0.01, 0.2, log=True) if with_temperature else None
    if start.loss == "sum":
        for index, term in enumerate(settings["terms"]):
            term["weight"] = trial.suggest_float(f"weight of {term['name']} {index}", 0.1, 10.0, log=True)
        return LossChoice(start.loss, settings, temperature)
    settings["label_smoothing"] = trial.suggest_float("label_smoothing", 0.0, 0.2)
    if start.loss == "info_nce":
        settings["image_to_text_weight"] = trial.suggest_float("image_to_text_weight", 0.3, 0.7)
    kind = trial.suggest_categorical("negatives", ["all", "hard", "weighted"])
    negatives = {"kind": kind}
    if kind == "hard":
        negatives["ratio"] = trial.suggest_float("hard ratio", 0.05, 0.5)
        negatives |= {"weight": trial.suggest_float("hard weight", 1.0, 5.0), "easy_weight": 1.0}
    elif kind == "weighted":
        negatives["beta"] = trial.suggest_float("beta", 0.05, 1.0)
    settings["negatives"] = negatives
    share = trial.suggest_float("weight of a softer scale", 0.0, 0.5)
    settings |= {"temperature_scales": [1.0, 0.3], "temperature_weights": [1 - share, share]}
    if with_labels:
        label = trial.suggest_float("weight of equal labels", 0.0, 0.5)
        positives = {**settings.get("positives", {"caption": 1.0}), "label": label}
        settings["positives"] = {name: weight for name, weight in positives.items() if weight > 0}
    return LossChoice(start.loss, settings, temperature)


def tune_loss(
    build: Callable[..., ClipTrainer],
    model_init: Callable[[], nn.Module],
    args: ClipTrainingArguments,
    folder: Path,
    *,
    with_labels: bool,
    metric: Callable[[dict[str, float]], float],
    identity: dict[str, Any],
) -> list[TrialResult]:
    """Search for `args.auto_tune_minutes` or `args.auto_tune_trials`, whichever ends first; all results so far.

    The first trial is the start itself, so the best is never worse than it. Trials whose first evaluations fall behind
    the median are cut short. The study lies in `folder/tuning.db`: a search that was killed goes on where it was, with
    the trial that was cut off repeated and the minutes already spent counted; one that has ended is not made again.

    Args:
        build: `(trainer_class, model_init, args) -> trainer`, with data and evaluators of its own.
        model_init: a fresh base model.
        args: of the run to tune for; trials take a share of its epochs (`auto_tune_epochs`).
        with_labels: whether the training rows have labels that could count as positives.
        metric: from an evaluation to the score, larger is better.
        identity: everything else that the results depend on, in plain values; another search in `folder` is refused.

    Raises:
        ClipDomainError: a loss with an unknown search space, several processes, no optuna, or a folder with the study of
            another search.
    """
    optuna = require("optuna", extra="tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    start = LossChoice(args.loss, dict(args.loss_settings or {}), args.temperature)
    if start.loss not in TUNABLE:
        raise ClipDomainError(
            f"--loss {start.loss}: only {', '.join(TUNABLE)} have a search space; tune yours by hand."
        )
    if args.world_size > 1:
        raise ClipDomainError("the loss is tuned in one process: run `hf-clip-domain tune` first, then launch many.")
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(folder / 'tuning.db').resolve()}"
    study = optuna.create_study(study_name=STUDY, storage=storage, load_if_exists=True, direction="maximize")
    identity = {**identity, **start.to_config(), "labels": with_labels, "epochs": args.auto_tune_epochs}
    _check_same_search(study, identity)
    _take_up_again(study, optuna)

    def choose(trial: Any) -> LossChoice:
        return suggest(trial, start, with_labels, with_temperature=args.temperature_schedule != "fixed")

    budget = [args.auto_tune_minutes, args.auto_tune_trials]
    done = [trial for trial in study.trials if trial.state.is_finished() and trial.state.name != "FAIL"]
    seconds = 60 * args.auto_tune_minutes - sum(trial.duration.total_seconds() for trial in done)
    if study.user_attrs.get("ended") != budget and seconds > 0 and len(done) < args.auto_tune_trials:
        trainer = build(_TuningTrainer, model_init, _trial_arguments(args, folder))
        trainer.choose = choose
        trainer.hyperparameter_search(
            hp_space=lambda trial: {},
            compute_objective=lambda metrics: metric(
                {key.removeprefix("eval_"): value for key, value in metrics.items()}
            ),
            n_trials=args.auto_tune_trials - len(done),
            direction="maximize",
            backend="optuna",
            study_name=STUDY,
            storage=storage,
            load_if_exists=True,
            # Seeded, and not with the same draws again after an interruption.
            sampler=optuna.samplers.TPESampler(seed=args.seed + len(study.trials), n_startup_trials=5),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
            timeout=seconds,
        )
        study.set_user_attr("ended", budget)
    return _results(study, choose)


class _TuningTrainer(ClipTrainer):
    """Every trial begins with a fresh model and the loss that the trial chose."""

    choose: Callable[[Any], LossChoice]

    def call_model_init(self, trial=None):
        if trial is not None:
            choice = self.choose(trial)
            self.args.temperature = choice.temperature
            self.loss = build_loss(choice.loss, **choice.settings)  # with which the new model is prepared
            for evaluator in self.evaluators:
                evaluator.similarity = getattr(self.loss, "similarity", "cosine")
        return super().call_model_init(trial)


def _trial_arguments(args: ClipTrainingArguments, folder: Path) -> ClipTrainingArguments:
    args = copy.copy(args)
    changes = {
        "num_train_epochs": args.auto_tune_epochs,
        "max_steps": -1,
        "eval_strategy": "steps",
        "eval_steps": 1 / 3,
        "monitor": False,
        "live_page": False,
        "notify": None,
    }
    changes |= {"save_strategy": "no", "load_best_model_at_end": False, "output_dir": str(folder / "trials")}
    for name, value in {**changes, "logging_strategy": "no", "report_to": [], "resume_from_checkpoint": None}.items():
        setattr(args, name, value)
    return ClipTrainingArguments(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
    )


def _check_same_search(study: Any, identity: dict[str, Any]) -> None:
    mine = json.loads(json.dumps(identity))  # as it comes back from the study
    theirs = study.user_attrs.get("identity", mine)
    if other := [name for name in mine | theirs if mine.get(name) != theirs.get(name)]:
        name = sorted(other)[0]
        raise ClipDomainError(
            f"the study in this folder is of another search: its {name} was {theirs.get(name)!r} and is now "
            f"{mine.get(name)!r}. Give another --output_dir, or delete its tuning.db."
        )
    study.set_user_attr("identity", mine)
    if not study.trials:
        study.enqueue_trial({}, user_attrs={"default": True})


def _take_up_again(study: Any, optuna: Any) -> None:
    """A trial that was running when the search was killed is run again."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)


def _results(study: Any, choose: Callable[[Any], LossChoice]) -> list[TrialResult]:
    optuna = require("optuna", extra="tune")
    results = []
    for trial in study.trials:
        if trial.state.name in ("COMPLETE", "PRUNED"):
            again = trial if trial.user_attrs.get("default") else optuna.trial.FixedTrial(trial.params)
            score = trial.value if trial.state.name == "COMPLETE" else None
            default = bool(trial.user_attrs.get("default"))
            results.append(TrialResult(trial.number, choose(again), score, trial.state.name.lower(), default))
    return results


def best_of(results: list[TrialResult]) -> TrialResult:
    """The highest score; of equal ones the first, so that the default gives way only to something better.

    Raises:
        ClipDomainError: no trial ended.
    """
    scored = [result for result in results if result.score is not None]
    if not scored:
        raise ClipDomainError(
            "no trial ended within the budget: give more --auto_tune_minutes or less --auto_tune_epochs."
        )
    return max(scored, key=lambda result: (result.score, -result.number))
