"""What the commands tell a tracking server: which runs are tracked, and what of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.options import RunOptions
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.ops.tracking import Tracker
from hf_clip_domain.ops.versioning import DatasetRevision, Reading, revision_of
from hf_clip_domain.sharing.environment import git_commit, hardware, versions

logger = logging.get_logger(__name__)

# What is worth keeping of a run's folder beside its weights.
_KEPT = ("*.png", "*.html", "*.json", "*.yaml", "README.md")
_WITH_THE_MODEL = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "special_tokens_map.json",
)


@contextmanager
def tracked(options: RunOptions, say) -> Iterator[Tracker | None]:
    """The run's tracker where `--report_to` names MLflow, or `None`; ends the run on the server with the block.

    Raises:
        ClipDomainError: MLflow is asked for and not installed.
    """
    training = options.training
    if not takes_mlflow(training) or training.process_index > 0:
        yield None
        return
    folder = Path(training.output_dir)
    with Tracker(folder, training.run_name or folder.resolve().name) as tracker:
        tracker.settings(
            {"model": options.model, "data": options.data, "adaptation": options.adaptation, "training": training}
        )
        tracker.tags(
            {
                "domain": options.domain.name,
                "base_model": options.model.model_name_or_path,
                "dataset": options.dataset_name,
                "git_commit": git_commit(),
                **{f"version.{name}": version for name, version in versions().items()},
                **{f"hardware.{name}": value for name, value in hardware().items()},
            }
        )
        yield tracker
    if tracker.left:
        say(
            f"{tracker.left} entries for the tracking server wait in {tracker.folder}: "
            f"`hf-clip-domain track {folder}` sends them when it answers."
        )


def tell_revision(options: RunOptions, tracker: Tracker | None, say) -> DatasetRevision | None:
    """Which revision of the dataset the run reads, told to the user and to the server; by the first process alone.

    Raises:
        ClipDomainError: files that cannot be read.
    """
    data = options.data
    if options.training.process_index > 0:
        return None
    columns = {f"{role}_column": getattr(data, f"{role}_column") for role in ("image", "text", "label", "group")}
    revision = revision_of(
        data.dataset,
        hub_revision=data.dataset_revision,
        streaming=data.streaming,
        reading=Reading(**columns),
    )
    say(f"Dataset revision: {revision.revision}.")
    if revision.warning:
        logger.warning(revision.warning)
    if tracker is not None:
        found = {"dataset_revision": revision.revision, "dataset_content": revision.content or None}
        tracker.tags({**found, "dataset_changed": bool(revision.warning)})
    return revision


def takes_mlflow(training: ClipTrainingArguments) -> bool:
    """Whether `--report_to` names MLflow; takes it from the list, since the Trainer's own reporter would log twice."""
    asked = "mlflow" in training.report_to
    training.report_to = [name for name in training.report_to if name != "mlflow"]
    return asked


def record_outcome(tracker: Tracker, folder: Path, report: EvaluationReport, steps: int) -> None:
    """The scores before and after, and the pictures, pages and small files of the finished run's folder."""
    tracker.metrics({f"before/{name}": value for name, value in (report.before or {}).items()})
    tracker.metrics({f"after/{name}": value for name, value in report.after.items()}, steps)
    files = sorted({path for pattern in _KEPT for path in folder.glob(pattern)})
    tracker.artifacts(path for path in files if not any(path.match(name) for name in _WITH_THE_MODEL))
