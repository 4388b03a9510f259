"""All that is measured of a model on a domain's pairs, from one embedding of them."""

from __future__ import annotations

from hf_clip_domain.domains import Domain
from hf_clip_domain.evaluation.bootstrap import REPLICATES
from hf_clip_domain.evaluation.domain_metrics import measure_domain
from hf_clip_domain.evaluation.embedded import EmbeddedPairs, measure_retrieval
from hf_clip_domain.evaluation.measurement import Measurement, joined
from hf_clip_domain.evaluation.terminology import load_terminology, measure_terminology
from hf_clip_domain.evaluation.zero_shot import REPLICATES as FEWER
from hf_clip_domain.evaluation.zero_shot import classify_labels, measure_zero_shot


def measure(embedded: EmbeddedPairs, domain: Domain, replicates: int = REPLICATES) -> Measurement:
    """Retrieval, zero-shot classification, the domain's own metrics and the terminology test.

    Args:
        embedded: from `RetrievalEvaluator.embed`.
        replicates: of the bootstrap; 0 for no intervals.
    """
    terminology = load_terminology(domain.terminology)
    classified = classify_labels(embedded)
    return joined(
        (
            measure_retrieval(embedded, replicates),
            measure_zero_shot(embedded, classified, min(replicates, FEWER)),
            measure_domain(embedded, domain, classified, replicates),
            measure_terminology(embedded.embedder, terminology, replicates),
        )
    )
