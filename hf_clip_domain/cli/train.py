"""`hf-clip-domain train`: score, adapt, score again, save. The steps of a run in the order they happen."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from transformers import set_seed

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.assembly import build_trainer, load_parts, similarity_of
from hf_clip_domain.cli.evaluation_sizes import add_picture_sizes
from hf_clip_domain.cli.forgetting import RunScores, similarity_path, summary, tuned_checkpoint
from hf_clip_domain.cli.options import RunOptions, parse_options
from hf_clip_domain.cli.tracking import record_outcome, tell_revision, tracked
from hf_clip_domain.cli.training_sizes import at_last_size
from hf_clip_domain.cli.tune import tune, use_tuned_loss
from hf_clip_domain.embedder import ClipEmbedder, similarity_beside
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.evaluation.calibration import calibrate
from hf_clip_domain.evaluation.forgetting import with_retained
from hf_clip_domain.evaluation.gallery import find_cases, to_json
from hf_clip_domain.losses import build_loss
from hf_clip_domain.models.adapters import is_adapted, save_adapted
from hf_clip_domain.models.dual_encoder import loading_classes, loading_import
from hf_clip_domain.models.merging import uniform_soup
from hf_clip_domain.ops.drift.making import write_run_reference
from hf_clip_domain.ops.tracking import Tracker
from hf_clip_domain.serving.registry import local_name
from hf_clip_domain.sharing.hub import push_folder, resolve_repo_id
from hf_clip_domain.sharing.publication import Publication
from hf_clip_domain.sharing.run_folder import REPORT_PAGE, write_run_folder
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
    training, domain = options.training, options.domain
    output_dir = Path(training.output_dir)
    set_seed(training.seed)

    build_loss(training.loss, **(training.loss_settings or {}))  # refused settings cost no loading
    if training.wise_ft and options.adaptation.save_adapter == "adapter":
        raise ClipDomainError(
            "--wise_ft makes a plain model, which --save_adapter adapter has no place for: give merged or both."
        )
    repo_id = _destination(training, output_dir) if training.push_to_hub else None
    if not training.skip_device_check:
        check_before_training(training.device, training.precision)
    check_optimizer(training)
    model, processor, pairs = load_parts(options, say)
    revision = tell_revision(options, tracker, say)
    base = model, processor  # as it is used without training: at its own size
    model, processor = at_last_size(model, processor, pairs, options, say)
    if training.auto_tune_loss:
        use_tuned_loss(tune(model, processor, pairs, options, say, tracker), training)
    loss = build_loss(training.loss, **(training.loss_settings or {}))
    base_similarity, similarity = (
        similarity_beside(local_name(options.model.model_name_or_path), model),
        similarity_of(loss),
    )
    scores = RunScores(options, processor, pairs)
    if training.wise_ft:
        scores.check_choice("--wise_ft")
        similarity_at = similarity_path(base_similarity, similarity)
        base_weights = uniform_soup([model])  # a copy; an adapter changes nothing yet
    before = scores.on_test(base[0], base_similarity, base[1])
    del base
    if scores.probe is not None:
        scores.probe.similarity = similarity
    trainer = build_trainer(model, processor, pairs, options, loss, probe=scores.probe, news=news)
    if tracker is not None:
        trainer.add_callback(tracker)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted, form = is_adapted(model), options.adaptation.save_adapter
    if adapted:  # saved first and merged, so that what is scored is what others will load
        with without_loss(model):
            model = save_adapted(model, processor, output_dir, form, write=trainer.is_world_process_zero())
    after, chosen, notes = scores.on_test(model, similarity), None, []
    if training.wise_ft:
        with without_loss(model):
            ends = base_weights, uniform_soup([model])
            chosen = scores.choose_merge(model, *ends, similarity_at, training.forgetting_budget)
        similarity, tuned = similarity_at(chosen.best.alpha), after
        after = scores.on_test(model, similarity)
        notes = [chosen.verdict(), summary(before.metrics, tuned.metrics, after.metrics)]
        if kept := tuned_checkpoint(output_dir, trainer.state.best_model_checkpoint):
            notes.append(f"The tuned weights, unmerged, remain in {kept}.")
    report = EvaluationReport.compare(
        before,
        with_retained(before, after),
        dataset=options.data.dataset or f"embedded {domain.name} samples (synthetic)",
        domain=domain.name,
        base_model=options.model.model_name_or_path,
    )
    calibration = None
    held_out_twice = "validation" in pairs and pairs["test"] is not pairs["validation"]
    if held_out_twice and training.process_index == 0:
        embedder = ClipEmbedder(model, processor, domain=domain, similarity=similarity)
        calibration = calibrate(embedder, pairs["validation"], pairs["test"])
    if calibration is not None:
        report.extra["calibration"] = asdict(calibration)
    if chosen is not None:
        report.extra["wise_ft"] = {**chosen.to_json(), "tuned": with_retained(before, tuned).metrics}
    if not adapted:
        trainer.save_model()
    elif chosen is not None and trainer.is_world_process_zero():
        model.save_pretrained(output_dir)
    if trainer.is_world_process_zero():
        add_picture_sizes(report, training, trainer.state.global_step, scores.embedded, model, processor, domain)
        report.extra["dataset"] = revision.to_json()
        report.extra["gallery"] = to_json(find_cases(scores.embedded, scores.ahead_before))
        write_run_folder(
            output_dir,
            model=model,
            processor=processor,
            report=report,
            domain=domain,
            base_model=options.model.model_name_or_path,
            dataset=options.data.dataset,
            test_pairs=pairs["test"],
            log_history=trainer.state.log_history,
            configuration=f"{options.to_yaml()}# dataset revision: {revision.revision}\n",
            similarity=similarity,
            loss_source=getattr(loss, "source", ""),
            calibration=calibration,
            sweep=chosen,
            notes=[*notes, revision.sentence()],
        )
        with without_loss(model):
            embedder = ClipEmbedder(model, processor, domain=domain, similarity=similarity)
            write_run_reference(output_dir, embedder, pairs, dataset=options.data.dataset)
    if tracker is not None:
        record_outcome(tracker, output_dir, report, trainer.state.global_step)
    if training.world_size > 1:  # a process that ends while another still talks to it would take it down
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    say(report.table())
    if chosen is not None:
        say("\n".join(["", chosen.table(), "", *notes]))
    if calibration is not None:
        say(
            f"Zero-shot probabilities of {len(calibration.classes)} labels: calibration error "
            f"{calibration.ece_before:.1%}, and {calibration.ece_after:.1%} at the fitted logit scale "
            f"{calibration.logit_scale:.1f} (calibration.json)."
        )
    say(f"\nAll of it with pictures: {output_dir / REPORT_PAGE}, for any browser, offline.")
    loader, _ = loading_classes(model.config)
    if adapted and form == "adapter":
        say(f"Saved to {output_dir}: load it with PeftModel.from_pretrained(base, {str(output_dir)!r}).")
    elif needed := loading_import(model.config):
        say(f"Saved to {output_dir}: load it with load_model({str(output_dir)!r}), or after `{needed}`")
        say(f"with {loader}.from_pretrained({str(output_dir)!r}).")
    else:
        say(f"Saved to {output_dir}: load it with {loader}.from_pretrained({str(output_dir)!r}).")
    if repo_id is not None and trainer.is_world_process_zero():
        _publish(training, output_dir, repo_id, say)
    return 0


def _destination(training: ClipTrainingArguments, output_dir: Path) -> str:
    """The repository that --push_to_hub means. The folder is published once it is whole, card and report included, in
    place of the Trainer's own pushes of half a folder."""
    if training.hub_strategy not in ("end", "every_save"):
        raise ClipDomainError(
            f"--hub_strategy {training.hub_strategy.value}: checkpoints are not published (they hold optimizer states and "
            "paths): leave it out. The finished folder is pushed once."
        )
    training.push_to_hub = False
    return resolve_repo_id(training.hub_model_id, output_dir, training.hub_token)


def _publish(training: ClipTrainingArguments, output_dir: Path, repo_id: str, say) -> None:
    try:
        url = push_folder(
            Publication.of(output_dir),
            repo_id,
            private=training.hub_private_repo,
            revision=training.hub_revision,
            token=training.hub_token,
            say=say,
        )
    except ClipDomainError as error:
        raise ClipDomainError(
            f"the model is trained and saved in {output_dir}; publishing it failed: {error} To publish it later: "
            f"`hf-clip-domain push {shlex.quote(str(output_dir))} --repo_id {repo_id}`."
        ) from error
    say(f"Published: {url}")


def _silent(*_) -> None:
    """The other processes of a distributed run."""
