"""What a run does about forgetting: reads the probe, scores it, and chooses how far to go from base to tuned model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch import nn

from hf_clip_domain.arguments import DataArguments
from hf_clip_domain.cli.assembly import SMOKE_ROWS
from hf_clip_domain.cli.options import RunOptions
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.domains import Domain, load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import RetrievalEvaluator, measure
from hf_clip_domain.evaluation.forgetting import (
    GENERAL,
    MEAN_RECALL,
    ForgettingProbe,
    RepeatedEvaluator,
    mean_recall,
)
from hf_clip_domain.evaluation.measurement import Measurement, joined
from hf_clip_domain.evaluation.wise_ft import Point, Sweep, sweep
from hf_clip_domain.models.merging import Weights, merge_weights
from hf_clip_domain.similarity import SimilarityFunction, blend_similarities

SAMPLES, NONE = "samples", "none"


def read_probe(data: DataArguments, domain: Domain, seed: int, *, smoke: bool) -> DatasetDict | None:
    """General pairs to measure forgetting on: at most `probe_rows` of `validation` and of `test`; `None` for no probe.

    The two are the source's last two splits, or its halves. Rows of a split are drawn by chance, always the same. The
    embedded general samples do not probe a run that trains on them.

    Raises:
        ClipDomainError: an unreadable source, or one with too few rows for two splits.
    """
    own = data.probe_dataset == SAMPLES and data.dataset is None and domain.name == GENERAL
    if data.probe_dataset == NONE or own:
        return None
    limit = min(data.probe_rows, SMOKE_ROWS) if smoke else data.probe_rows
    if data.probe_dataset == SAMPLES:
        return load_samples(GENERAL, train=0, validation=min(limit, 150), test=min(limit, 250))
    pairs = load_pairs(data.probe_dataset, validation_fraction=0, test_fraction=0.5, seed=seed)
    splits = [pairs[name] for name in ("train", "validation", "test") if name in pairs][-2:]
    if len(splits) < 2:
        raise ClipDomainError(
            f"--probe_dataset {data.probe_dataset}: too few rows to choose a model by some and judge it by others."
        )
    drawn = [rows.shuffle(seed=0).select(range(min(limit, len(rows)))) for rows in splits]
    return DatasetDict(zip(("validation", "test"), drawn, strict=True))


class RunScores:
    """The scores of a run: on the test splits before and after, on the probe while it goes, and of merged models.

    Attributes:
        probe: the probe's validation split, or `None` without a probe.
        embedded: the test split as the last scored model embeds it; `ahead_before`: the ranks of the first one.

    Raises:
        ClipDomainError: the probe's domain or dataset cannot be used.
    """

    def __init__(self, options: RunOptions, processor: Any, pairs: DatasetDict) -> None:
        training, general = options.training, load_domain(options.data.probe_domain)
        with training.main_process_first(desc="reading the probe"):
            probe = read_probe(options.data, options.domain, training.seed, smoke=options.smoke)
        shared = {"processor": processor, "batch_size": training.per_device_eval_batch_size}
        self._processor = processor
        self._domain, self._test = options.domain, RetrievalEvaluator(pairs["test"], domain=options.domain, **shared)
        self.probe = self._test_probe = self.embedded = self.ahead_before = None
        if probe is not None:
            self.probe = ForgettingProbe(probe["validation"], domain=general, **shared)
            self._test_probe = ForgettingProbe(probe["test"], domain=general, **shared)
        self._validation = lambda: RepeatedEvaluator(pairs["validation"], domain=options.domain, **shared)
        self._can_validate = "validation" in pairs

    def on_test(self, model: nn.Module, similarity: SimilarityFunction, processor: Any = None) -> Measurement:
        """Domain and probe, the figures to be reported: nothing is chosen by them. `processor`: of another size."""
        for evaluator in filter(None, (self._test, self._test_probe)):
            evaluator.processor = self._processor if processor is None else processor
        self._test.similarity = similarity
        self.embedded = self._test.embed(model)
        if self.ahead_before is None:
            self.ahead_before = self.embedded.ahead
        measured = measure(self.embedded, self._domain)
        if self._test_probe is None:
            return measured
        self._test_probe.similarity = similarity
        return joined((measured, Measurement(metrics=self._test_probe(model))))

    def check_choice(self, option: str) -> None:
        """A choice needs something to choose by; to be asked before anything that takes long.

        Raises:
            ClipDomainError: no validation split, or no probe.
        """
        if not self._can_validate:
            raise ClipDomainError(f"{option} chooses on a validation split: give --validation_fraction above 0.")
        if self.probe is None:
            raise ClipDomainError(
                f"{option} weighs the domain against a probe: name general pairs with --probe_dataset."
            )

    def soup_score(self, model: nn.Module, similarity: SimilarityFunction) -> Callable[[Weights], float]:
        """From weights to the domain's mean Recall@10 on the validation split; `model` takes the weights."""
        domain = self._validation()
        domain.similarity = similarity

        def score(weights: Weights) -> float:
            model.load_state_dict(weights)
            return mean_recall(domain(model))

        return score

    def choose_merge(
        self,
        model: nn.Module,
        base: Weights,
        tuned: Weights,
        similarity: Callable[[float], SimilarityFunction],
        budget: float,
        alphas: Sequence[float] | None = None,
    ) -> Sweep:
        """Try models between `base` and `tuned` on the validation splits, and leave the best of them in `model`.

        Args:
            model: takes each of the weights in turn.
            similarity: of the model at an alpha.
            budget, alphas: see `sweep`.
        """
        domain, probe = self._validation(), self.probe

        def score(alpha: float) -> Point:
            model.load_state_dict(merge_weights(base, tuned, alpha))
            domain.similarity = probe.similarity = similarity(alpha)
            return Point(alpha, mean_recall(domain(model)), probe(model)[MEAN_RECALL])

        found = sweep(score, budget, alphas)
        model.load_state_dict(merge_weights(base, tuned, found.best.alpha))
        return found


def similarity_path(base: SimilarityFunction, tuned: SimilarityFunction) -> Callable[[float], SimilarityFunction]:
    """The similarity of a merged model by its alpha.

    Raises:
        ClipDomainError: nothing lies between the two, see `blend_similarities`.
    """
    blend_similarities(base, tuned, 0.0)
    return lambda alpha: blend_similarities(base, tuned, alpha)


def summary(before: Mapping[str, float], tuned: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Base, tuned and merged model on the test splits, in one sentence."""
    first, second, third = (mean_recall(scores) for scores in (before, tuned, after))
    gain = f" ({(third - first) / (second - first):.0%} of the gain)" if second > first else ""
    general = [scores[MEAN_RECALL] for scores in (before, tuned, after)]
    shares = [f" ({value / general[0]:.1%} retained)" if general[0] else "" for value in general]
    return (
        f"Mean Recall@10 on the test splits: domain {first:.1%} base, {second:.1%} tuned, {third:.1%} merged{gain}; general "
        f"{general[0]:.1%} base, {general[1]:.1%} tuned{shares[1]}, {general[2]:.1%} merged{shares[2]}."
    )


def tuned_checkpoint(folder: Path, best: str | None) -> str:
    """Where the unmerged tuned weights remain: the best checkpoint, or else the last; `""` where none was kept."""
    kept = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return Path(best).name if best else kept[-1].name if kept else ""
