"""What a finished run leaves beside the weights: scores, pictures, card, domain and the configuration to repeat it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from hf_clip_domain.domains import Domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.evaluation.calibration import Calibration
from hf_clip_domain.evaluation.gallery import Thumbnails
from hf_clip_domain.evaluation.html_report import write_html
from hf_clip_domain.evaluation.plots import (
    plot_forgetting,
    plot_recall,
    plot_resolutions,
    plot_retrieval_sample,
    plot_training_curve,
)
from hf_clip_domain.evaluation.tables import picture_sizes
from hf_clip_domain.evaluation.wise_ft import Sweep
from hf_clip_domain.models.beside import CALIBRATION_FILE
from hf_clip_domain.sharing.model_card import write_model_card
from hf_clip_domain.similarity import (
    SIMILARITY_FILE,
    SIMILARITY_WEIGHTS,
    SimilarityFunction,
    build_similarity,
    cosine,
    save_similarity,
)

CONFIGURATION = "run.yaml"
REPORT_PAGE = "report.html"
SWEEP_FILE, SWEEP_PLOT, CURVE_PLOT = "wise_ft.json", "forgetting.png", "training_curve.png"
SIZES_PLOT = "resolutions.png"


def write_run_folder(
    folder: Path,
    *,
    model: Any,
    processor: Any,
    report: EvaluationReport,
    domain: Domain,
    base_model: str,
    dataset: str | None,
    test_pairs: Dataset,
    log_history: list[dict[str, float]] | None,
    configuration: str,
    similarity: SimilarityFunction = cosine,
    loss_source: str = "",
    calibration: Calibration | None = None,
    sweep: Sweep | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Complete `folder`, which already holds the weights and the processor.

    Writes `domain.yaml`, `evaluation.json`, `report.html`, `run.yaml`, `training_curve.png`, `recall.png`,
    `retrieval_sample.png` and `README.md` (the model card, last, since it shows the others).

    Args:
        dataset: a Hub id, a path, or `None` for the embedded synthetic samples.
        log_history: `TrainerState.log_history`; `None` for a model that no training made.
        configuration: YAML that `--config` takes.
        similarity: by which the model was trained and is to be used; kept as `similarity.json` unless it is the cosine.
        loss_source: the paper of the loss, for the card.
        calibration: kept as `calibration.json`.
        sweep: how the weights were merged; kept as `wise_ft.json` and drawn as `forgetting.png`.
        notes: further paragraphs of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    domain.save(folder)
    report.save(folder / "evaluation.json")
    (folder / CONFIGURATION).write_text(configuration, encoding="utf-8")
    write_html(report, folder / REPORT_PAGE, picture=Thumbnails(test_pairs), log_history=log_history or ())
    plot_recall(report, folder / "recall.png")
    optional = (SIMILARITY_FILE, SIMILARITY_WEIGHTS, CALIBRATION_FILE, SWEEP_FILE, SWEEP_PLOT, CURVE_PLOT, SIZES_PLOT)
    for earlier in optional:  # of another run into the same folder
        (folder / earlier).unlink(missing_ok=True)
    if log_history is not None:
        plot_training_curve(log_history, folder / CURVE_PLOT)
    if calibration is not None:
        calibration.save(folder)
    if sweep is not None:
        (folder / SWEEP_FILE).write_text(json.dumps(sweep.to_json(), indent=2) + "\n", encoding="utf-8")
        plot_forgetting(sweep.points, sweep.best, sweep.points[0].general - sweep.budget / 100, folder / SWEEP_PLOT)
    if (sizes := picture_sizes(report)) is not None:
        plot_resolutions(sizes, folder / SIZES_PLOT)
    similarity = build_similarity(similarity)
    save_similarity(similarity, folder)
    embedder = ClipEmbedder(model, processor, domain=domain, similarity=similarity)
    plot_retrieval_sample(embedder, test_pairs, folder / "retrieval_sample.png")
    write_model_card(
        folder,
        report=report,
        domain=domain,
        base_model=base_model,
        dataset_name=dataset,
        training_arguments=yaml.safe_load(configuration),
        config=model.config,
        notes=[*notes, *([f"Trained with the loss of {loss_source}."] if loss_source else [])],
    )
