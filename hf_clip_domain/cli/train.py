"""`hf-clip-domain train`: score, adapt, score again, save. The steps of a run in the order they happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch import nn
from transformers import set_seed

from hf_clip_domain.cli.assembly import build_trainer, load_parts, similarity_of
from hf_clip_domain.cli.evaluation_sizes import add_picture_sizes
from hf_clip_domain.cli.forgetting import RunScores, similarity_path, summary, tuned_checkpoint
from hf_clip_domain.cli.options import RunOptions, parse_options
from hf_clip_domain.cli.outcome import Outcome, calibration_sentence, where_it_is
from hf_clip_domain.cli.publishing import publish, take_destination
from hf_clip_domain.cli.tracking import record_outcome, tell_revision, tracked
from hf_clip_domain.cli.training_sizes import at_last_size
from hf_clip_domain.cli.tune import tune, use_tuned_loss
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.calibration import calibrate
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.losses import build_loss
from hf_clip_domain.models.adapters import is_adapted, save_adapted
from hf_clip_domain.models.beside import similarity_beside
from hf_clip_domain.models.merging import Weights, uniform_soup
from hf_clip_domain.ops.tracking import Tracker
from hf_clip_domain.ops.versioning import DatasetRevision
from hf_clip_domain.serving.registry import local_name
from hf_clip_domain.similarity import SimilarityFunction
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.canary import check_before_training
from hf_clip_domain.training.loss_module import without_loss
from hf_clip_domain.training.news import RunNews
from hf_clip_domain.training.optimizers import check_optimizer


def run(argv: list[str]) -> int:
    """Run the main job with the given command line; returns the exit status.

    Raises:
        ClipDomainError: input that cannot be used, in one sentence.
    """
    options = parse_options(argv)
    say = print if options.training.process_index == 0 else _silent
    with RunNews(options.training) as news, tracked(options, say) as tracker:
        return _run(options, news, tracker, say)


def _run(options: RunOptions, news: RunNews, tracker: Tracker | None, say) -> int:
    training = options.training
    set_seed(training.seed)
    repo_id = _refuse_early(options)
    start = _load_and_score(options, tracker, say)
    trainer = _train(start, options, news, tracker)
    outcome = _save_and_score(start, trainer, options)
    told = _write(start, trainer, outcome, options, tracker) if trainer.is_world_process_zero() else []
    if training.world_size > 1:  # a process that ends while another still talks to it would take it down
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    for words in told:
        say(words)
    if repo_id is not None and trainer.is_world_process_zero():
        publish(training, repo_id, say)
    return 0


def _refuse_early(options: RunOptions) -> str | None:
    """What can be known to fail costs no loading; returns the repository to publish in, if any."""
    training = options.training
    build_loss(training.loss, **(training.loss_settings or {}))
    if training.wise_ft and options.adaptation.save_adapter == "adapter":
        raise ClipDomainError(
            "--wise_ft makes a plain model, which --save_adapter adapter has no place for: give merged or both."
        )
    repo_id = take_destination(training)
    if not training.skip_device_check:
        check_before_training(training.device, training.precision)
    check_optimizer(training)
    return repo_id


@dataclass(frozen=True)
class _Start:
    """What a run begins with.

    Attributes:
        model, processor: at the size that the run ends with.
        before: the base model's scores, as it is used without training: at its own size.
        base_weights, similarity_at: for `--wise_ft`, whose models lie between these weights and the tuned ones.
    """

    model: nn.Module
    processor: Any
    pairs: DatasetDict
    revision: DatasetRevision | None
    loss: nn.Module
    scores: RunScores
    before: Measurement
    base_weights: Weights | None = None
    similarity_at: Callable[[float], SimilarityFunction] | None = None


def _load_and_score(options: RunOptions, tracker: Tracker | None, say) -> _Start:
    training = options.training
    base, base_processor, pairs = load_parts(options, say)
    revision = tell_revision(options, tracker, say)
    model, processor = at_last_size(base, base_processor, pairs, options, say)
    if training.auto_tune_loss:
        use_tuned_loss(tune(model, processor, pairs, options, say, tracker), training)
    loss = build_loss(training.loss, **(training.loss_settings or {}))
    base_similarity = similarity_beside(local_name(options.model.model_name_or_path), model)
    scores, merging = RunScores(options, processor, pairs), {}
    if training.wise_ft:
        scores.check_choice("--wise_ft")
        merging["similarity_at"] = similarity_path(base_similarity, similarity_of(loss))
        merging["base_weights"] = uniform_soup([model])  # a copy; an adapter changes nothing yet
    before = scores.on_test(base, base_similarity, base_processor)
    return _Start(model, processor, pairs, revision, loss, scores, before, **merging)


def _train(start: _Start, options: RunOptions, news: RunNews, tracker: Tracker | None) -> ClipTrainer:
    probe = start.scores.probe
    if probe is not None:
        probe.similarity = similarity_of(start.loss)
    trainer = build_trainer(start.model, start.processor, start.pairs, options, start.loss, probe=probe, news=news)
    if tracker is not None:
        trainer.add_callback(tracker)
    trainer.train(resume_from_checkpoint=options.training.resume_from_checkpoint)
    return trainer


def _save_and_score(start: _Start, trainer: ClipTrainer, options: RunOptions) -> Outcome:
    """The trained model, merged with the base model where that is asked for; its weights are saved."""
    model, folder = trainer.accelerator.unwrap_model(trainer.model), Path(options.training.output_dir)
    adapted = is_adapted(model)
    if adapted:  # saved first and merged, so that what is scored is what others will load
        with without_loss(model):
            model = save_adapted(
                model,
                start.processor,
                folder,
                options.adaptation.save_adapter,
                write=trainer.is_world_process_zero(),
            )
    similarity = similarity_of(start.loss)
    after = start.scores.on_test(model, similarity)
    outcome = Outcome(model, start.processor, similarity, start.before, after)
    if options.training.wise_ft:
        outcome = _merge(start, outcome, options, best=trainer.state.best_model_checkpoint)
    if not adapted:
        trainer.save_model()
    elif outcome.sweep is not None and trainer.is_world_process_zero():
        model.save_pretrained(folder)
    return outcome


def _merge(start: _Start, tuned: Outcome, options: RunOptions, best: str | None) -> Outcome:
    """The outcome with the weights of the best model between base and tuned, which `tuned.model` takes."""
    with without_loss(tuned.model):
        ends = start.base_weights, uniform_soup([tuned.model])
        chosen = start.scores.choose_merge(tuned.model, *ends, start.similarity_at, options.training.forgetting_budget)
    similarity = start.similarity_at(chosen.best.alpha)
    after = start.scores.on_test(tuned.model, similarity)
    notes = [chosen.verdict(), summary(start.before.metrics, tuned.after.metrics, after.metrics)]
    if kept := tuned_checkpoint(Path(options.training.output_dir), best):
        notes.append(f"The tuned weights, unmerged, remain in {kept}.")
    return Outcome(
        tuned.model, start.processor, similarity, start.before, after, sweep=chosen, tuned=tuned.after, notes=notes
    )


def _write(
    start: _Start, trainer: ClipTrainer, outcome: Outcome, options: RunOptions, tracker: Tracker | None
) -> list[str]:
    """Complete the output folder; what is to be told of it."""
    training, folder, steps = options.training, Path(options.training.output_dir), trainer.state.global_step
    report = outcome.report(options, start.scores, options.model.model_name_or_path)
    calibration = None
    if "validation" in start.pairs and start.pairs["test"] is not start.pairs["validation"]:
        calibration = calibrate(outcome.embedder(options), start.pairs["validation"], start.pairs["test"])
    add_picture_sizes(report, training, steps, start.scores.embedded, outcome.model, start.processor, options.domain)
    report.extra["dataset"] = start.revision.to_json()
    outcome.write(
        folder,
        report,
        options,
        start.pairs,
        configuration=f"{options.to_yaml()}# dataset revision: {start.revision.revision}\n",
        calibration=calibration,
        log_history=trainer.state.log_history,
        loss_source=getattr(start.loss, "source", ""),
        notes=[start.revision.sentence()],
    )
    if tracker is not None:
        record_outcome(tracker, folder, report, steps)
    told = [report.table()]
    if outcome.sweep is not None:
        told.append("\n".join(["", outcome.sweep.table(), "", *outcome.notes]))
    if calibration is not None:
        told.append(calibration_sentence(calibration))
    adapter_alone = options.adaptation.save_adapter == "adapter"
    return [*told, where_it_is(folder, outcome.model, adapter_alone=adapter_alone)]


def _silent(*_) -> None:
    """The other processes of a distributed run."""
