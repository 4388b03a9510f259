"""`hf-clip-domain train`: score, adapt, score again, save. The steps of a run in the order they happen."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from transformers import set_seed

from hf_clip_domain.cli.assembly import build_trainer, load_parts, similarity_of
from hf_clip_domain.cli.options import RunOptions, parse_options
from hf_clip_domain.cli.tune import tune, use_tuned_loss
from hf_clip_domain.embedder import ClipEmbedder, similarity_beside
from hf_clip_domain.evaluation import EvaluationReport, RetrievalEvaluator, measure
from hf_clip_domain.evaluation.calibration import calibrate
from hf_clip_domain.losses import build_loss
from hf_clip_domain.models.adapters import is_adapted, save_adapted
from hf_clip_domain.sharing.run_folder import write_run_folder
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
    with RunNews(options.training) as news:
        return _run(options, news)


def _run(options: RunOptions, news: RunNews) -> int:
    training, domain = options.training, options.domain
    say = print if training.process_index == 0 else _silent
    output_dir = Path(training.output_dir)
    set_seed(training.seed)

    build_loss(training.loss, **(training.loss_settings or {}))  # refused settings cost no loading
    if not training.skip_device_check:
        check_before_training(training.device, training.precision)
    check_optimizer(training)
    model, processor, pairs = load_parts(options, say)
    if training.auto_tune_loss:
        use_tuned_loss(tune(model, processor, pairs, options, say), training)
    loss = build_loss(training.loss, **(training.loss_settings or {}))
    score = partial(RetrievalEvaluator, processor=processor, domain=domain)
    score = partial(score, batch_size=training.per_device_eval_batch_size)
    base_similarity = similarity_beside(options.model.model_name_or_path, model)
    before = measure(score(pairs["test"], similarity=base_similarity).embed(model), domain)
    trainer = build_trainer(model, processor, pairs, options, loss, news=news)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted, form = is_adapted(model), options.adaptation.save_adapter
    if adapted:  # saved first and merged, so that what is scored is what others will load
        with without_loss(model):
            model = save_adapted(model, processor, output_dir, form, write=trainer.is_world_process_zero())
    report = EvaluationReport.compare(
        before,
        measure(score(pairs["test"], similarity=similarity_of(loss)).embed(model), domain),
        dataset=options.data.dataset or f"embedded {domain.name} samples (synthetic)",
        domain=domain.name,
        base_model=options.model.model_name_or_path,
    )
    calibration = None
    held_out_twice = "validation" in pairs and pairs["test"] is not pairs["validation"]
    if held_out_twice and training.process_index == 0:
        embedder = ClipEmbedder(model, processor, domain=domain, similarity=similarity_of(loss))
        calibration = calibrate(embedder, pairs["validation"], pairs["test"])
    if calibration is not None:
        report.extra["calibration"] = asdict(calibration)
    if not adapted:
        trainer.save_model()
    if trainer.is_world_process_zero():
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
            configuration=options.to_yaml(),
            similarity=similarity_of(loss),
            loss_source=getattr(loss, "source", ""),
            calibration=calibration,
        )
    if training.world_size > 1:  # a process that ends while another still talks to it would take it down
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    say(report.table())
    if calibration is not None:
        say(
            f"Zero-shot probabilities of {len(calibration.classes)} labels: calibration error "
            f"{calibration.ece_before:.1%}, and {calibration.ece_after:.1%} at the fitted logit scale "
            f"{calibration.logit_scale:.1f} (calibration.json)."
        )
    if adapted and form == "adapter":
        say(f"\nSaved to {output_dir}: load it with PeftModel.from_pretrained(base, {str(output_dir)!r}).")
    else:
        say(f"\nSaved to {output_dir}: load it with CLIPModel.from_pretrained({str(output_dir)!r}).")
    return 0


def _silent(*_) -> None:
    """The other processes of a distributed run."""
