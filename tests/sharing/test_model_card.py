"""The card's metadata is what the Hub reads, and its figures are the report's."""

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from transformers import CLIPConfig

from hf_clip_domain.domains import load_domain
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.sharing.environment import hardware, versions
from hf_clip_domain.sharing.model_card import write_model_card


def scores(recall):
    found = {"candidates": 250.0}
    for direction in ("image_to_text", "text_to_image"):
        found |= {f"{direction}/recall@{k}": recall * k / 10 for k in (1, 5, 10)}
        found |= {f"{direction}/chance_recall@{k}": k / 250 for k in (1, 5, 10)}
        found |= {f"{direction}/mean_rank": 40.0, f"{direction}/median_rank": 12.0, f"{direction}/mrr": recall / 3}
        found |= {f"{direction}/candidates": 250.0}
    return found


def write(folder, **changes):
    settings = {
        "report": EvaluationReport(before=scores(0.1), after=scores(0.4)),
        "domain": load_domain("medical"),
        "base_model": "openai/clip-vit-base-patch32",
        "dataset_name": "someone/pairs",
        "training_arguments": {"learning_rate": 1e-5, "output_dir": "/home/me/out"},
        "config": CLIPConfig(),
        **changes,
    }
    return write_model_card(folder, **settings)


def test_metadata_is_valid_and_complete(tmp_path):
    path = write(tmp_path)
    metadata = metadata_load(path)
    assert metadata["base_model"] == "openai/clip-vit-base-patch32" and metadata["datasets"] == ["someone/pairs"]
    assert metadata["license"] == "other" and metadata["license_name"]
    assert metadata["library_name"] == "transformers" and {"clip", "medical"} <= set(metadata["tags"])
    results = ModelCard.load(path).data.eval_results
    values = {result.metric_type: result.metric_value for result in results}
    assert len(results) == 12 and 0.4 in values.values()


def test_the_body_tells_results_settings_environment_and_limits(tmp_path):
    (tmp_path / "recall.png").write_bytes(b"")
    text = write(tmp_path, licence="mit", notes=["A note."]).read_text()
    assert "license: mit" in text and "A note." in text
    assert "40.0" in text and "10.0" in text and "+30.0" in text
    assert "learning_rate: 1.0e-05" in text and "Not a medical device" in text
    assert "recall.png" in text and "training_curve.png" not in text
    assert versions()["torch"] in text and hardware()["processor"] in text


@pytest.mark.parametrize("base", ["starter", "/home/me/models/mine"])
def test_paths_of_this_machine_stay_on_this_machine(tmp_path, base):
    arguments = {"dataset": "/home/me/pairs.csv", "model_name_or_path": base, "output_dir": "/home/me/out"}
    path = write(tmp_path, base_model=base, dataset_name="/home/me/pairs.csv", training_arguments=arguments)
    assert "/home/me" not in path.read_text()
    metadata = metadata_load(path)
    assert "base_model" not in metadata and "datasets" not in metadata
    assert metadata["license"] == ("apache-2.0" if base == "starter" else "other")


def test_synthetic_data_is_called_synthetic(tmp_path):
    assert "synthetic" in write(tmp_path, base_model="starter", dataset_name=None).read_text()
