"""What a run, or a merge, came to: reported, kept in the output folder, and told to the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch import nn

from hf_clip_domain.cli.forgetting import RunScores
from hf_clip_domain.cli.options import RunOptions
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.evaluation.calibration import Calibration
from hf_clip_domain.evaluation.forgetting import with_retained
from hf_clip_domain.evaluation.gallery import find_cases, to_json
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.evaluation.wise_ft import Sweep
from hf_clip_domain.models.dual_encoder import loading_classes, loading_import
from hf_clip_domain.ops.drift.making import write_run_reference
from hf_clip_domain.sharing.run_folder import REPORT_PAGE, write_run_folder
from hf_clip_domain.similarity import SimilarityFunction
from hf_clip_domain.training.loss_module import without_loss


@dataclass(frozen=True)
class Outcome:
    """A model with its scores on the test splits.

    Attributes:
        model, processor: as others will load them.
        similarity: by which the model is to be used.
        before, after: scores of the base model and of this one.
        sweep, tuned: how the weights were merged, and the scores of the unmerged ones; `None` where they were not.
        notes: sentences for the card.
    """

    model: nn.Module
    processor: Any
    similarity: SimilarityFunction
    before: Measurement
    after: Measurement
    sweep: Sweep | None = None
    tuned: Measurement | None = None
    notes: Sequence[str] = ()

    def embedder(self, options: RunOptions) -> ClipEmbedder:
        """The model as it is to be used."""
        return ClipEmbedder(self.model, self.processor, domain=options.domain, similarity=self.similarity)

    def report(self, options: RunOptions, scores: RunScores, base_model: str) -> EvaluationReport:
        """Before and after, what was merged, and pictures whose ranks changed."""
        report = EvaluationReport.compare(
            self.before,
            with_retained(self.before, self.after),
            dataset=options.dataset_name,
            domain=options.domain.name,
            base_model=base_model,
        )
        if self.sweep is not None:
            tuned = with_retained(self.before, self.tuned).metrics
            report.extra["wise_ft"] = {**self.sweep.to_json(), "tuned": tuned}
        report.extra["gallery"] = to_json(find_cases(scores.embedded, scores.ahead_before))
        return report

    def write(
        self,
        folder: Path,
        report: EvaluationReport,
        options: RunOptions,
        pairs: DatasetDict,
        *,
        configuration: str,
        calibration: Calibration | None = None,
        log_history: list[dict[str, float]] | None = None,
        loss_source: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        """Complete `folder`, which holds the weights: report, pictures, card, configuration and drift reference.

        Args:
            configuration, calibration, log_history, loss_source: see `write_run_folder`.
            notes: sentences for the card beyond its own.
        """
        if calibration is not None:
            report.extra["calibration"] = asdict(calibration)
        write_run_folder(
            folder,
            model=self.model,
            processor=self.processor,
            report=report,
            domain=options.domain,
            base_model=report.base_model,
            dataset=options.data.dataset,
            test_pairs=pairs["test"],
            log_history=log_history,
            configuration=configuration,
            similarity=self.similarity,
            loss_source=loss_source,
            calibration=calibration,
            sweep=self.sweep,
            notes=[*self.notes, *notes],
        )
        with without_loss(self.model):
            write_run_reference(folder, self.embedder(options), pairs, dataset=options.data.dataset)


def calibration_sentence(calibration: Calibration) -> str:
    """For the console."""
    return (
        f"Zero-shot probabilities of {len(calibration.classes)} labels: calibration error "
        f"{calibration.ece_before:.1%}, and {calibration.ece_after:.1%} at the fitted logit scale "
        f"{calibration.logit_scale:.1f} (calibration.json)."
    )


def where_it_is(folder: Path, model: nn.Module, *, adapter_alone: bool) -> str:
    """For the console: the folder's page, and how the model is loaded."""
    loader, _ = loading_classes(model.config)
    saved, name = f"Saved to {folder}: load it with ", repr(str(folder))
    page = f"\nAll of it with pictures: {folder / REPORT_PAGE}, for any browser, offline.\n"
    if adapter_alone:
        return f"{page}{saved}PeftModel.from_pretrained(base, {name})."
    if needed := loading_import(model.config):
        return f"{page}{saved}load_model({name}), or after `{needed}`\nwith {loader}.from_pretrained({name})."
    return f"{page}{saved}{loader}.from_pretrained({name})."
