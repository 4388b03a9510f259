"""The model card: `README.md` with metadata the Hub understands, written from the run's own figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

from hf_clip_domain.domains import Domain
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.evaluation.forgetting import GENERAL
from hf_clip_domain.models.adapters import ADAPTER_CONFIG
from hf_clip_domain.models.dual_encoder import loading_classes, loading_import
from hf_clip_domain.sharing.environment import git_commit, hardware, precision, versions

STARTER = "starter"
_OWN_BASES = {
    STARTER: "the starter model of hf-clip-domain (small; made for trying things out)",
    "towers": "the towers of hf-clip-domain (EfficientNet-Lite0 and all-MiniLM-L6-v2, joined by two heads)",
}
_PICTURES = {
    "recall.png": "Recall before and after",
    "forgetting.png": "Domain against general recall of the models between base and tuned one, on validation splits",
    "resolutions.png": "Recall and speed by picture size",
    "training_curve.png": "Training curve",
    "retrieval_sample.png": "What test captions find; the right picture is framed",
}


def write_model_card(
    folder: str | Path,
    *,
    report: EvaluationReport,
    domain: Domain,
    base_model: str,
    dataset_name: str | None,
    training_arguments: dict[str, Any],
    config: PreTrainedConfig,
    licence: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write `README.md` into the model's folder, whether it holds a plain model or an adapter.

    Args:
        report: scores before and after.
        base_model: Hub id, path or `"starter"`.
        dataset_name: Hub id or path, or `None` for the embedded synthetic samples. A path of this machine means
            nothing to others: the card says "a local dataset".
        training_arguments: what differs from the defaults.
        config: the model's, which decides the classes that load it.
        licence: SPDX identifier as the Hub spells it; by default the starter's own Apache-2.0, otherwise `other`
            with a note, since only the user knows what base model and data allow.
        notes: further paragraphs.

    Returns:
        The path of the card.
    """
    folder = Path(folder)
    adapter = (folder / ADAPTER_CONFIG).is_file()
    on_hub = dataset_name is not None and _is_hub_id(dataset_name)
    data = ModelCardData(
        language="en",
        license=licence or ("apache-2.0" if base_model == STARTER else "other"),
        license_name=None if licence or base_model == STARTER else "see-base-model-and-data",
        library_name="peft" if adapter else "transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "hf-clip-domain", "image-text-retrieval", "domain-adaptation", domain.name],
        base_model=base_model if _is_hub_id(base_model) else None,
        **({"base_model_relation": "adapter"} if adapter and _is_hub_id(base_model) else {}),
        datasets=[dataset_name] if on_hub else None,
        model_name=folder.resolve().name,
        eval_results=_eval_results(report, domain, dataset_name if on_hub else None),
    )
    sections = [
        _introduction(domain, base_model, dataset_name, on_hub),
        "## Results\n\n" + report.markdown().strip(),
        *(f"![{title}]({name})" for name, title in _PICTURES.items() if (folder / name).exists()),
        *(["All of it with a gallery of test pictures: `report.html`."] if (folder / "report.html").exists() else []),
        _usage(domain, config, base_model if adapter else None),
        _preprocessing(domain, loading_classes(config)[1]),
        _limits(domain, base_model, dataset_name),
        *notes,
        "## Training\n\nSettings that differ from the defaults; `run.yaml` holds them for `--config`.\n\n```yaml\n"
        + yaml.safe_dump(_shareable(training_arguments), sort_keys=True).strip()
        + "\n```",
        "## Environment\n\n"
        + _list(
            {**versions(), **({"commit": git_commit()} if git_commit() else {}), **hardware(), **precision(folder)}
        ),
    ]
    path = folder / "README.md"
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _eval_results(report: EvaluationReport, domain: Domain, hub_dataset: str | None) -> list[EvalResult]:
    own = (hub_dataset or f"{domain.name}-local", hub_dataset or f"{domain.title or domain.name} test split")
    probe = (f"{GENERAL}-probe", "General pairs, to measure forgetting")
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Image-text retrieval",
            dataset_type=(probe if kind.startswith(f"{GENERAL}_") else own)[0],
            dataset_name=(probe if kind.startswith(f"{GENERAL}_") else own)[1],
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in report.model_index_metrics()
    ]


def _introduction(domain: Domain, base_model: str, dataset: str | None, on_hub: bool) -> str:
    base = _OWN_BASES.get(base_model) or (f"`{base_model}`" if _is_hub_id(base_model) else "a local model")
    if dataset is None:
        data = f"the embedded {domain.name} samples, which are **synthetic** (drawn by a program)"
    else:
        data = f"`{dataset}`" if on_hub else "a local dataset"
    return (
        f"# CLIP for the {domain.title or domain.name} domain\n\nA dual encoder of pictures and texts: {base}, adapted to "
        f"{data} with a contrastive loss. {domain.description}"
    ).strip()


def _usage(domain: Domain, config: PreTrainedConfig, base_model: str | None) -> str:
    """`base_model`: the one to put the adapter on, where the folder holds an adapter."""
    model_class, processor_class = loading_classes(config)
    load, imports = f'{model_class}.from_pretrained("FOLDER_OR_HUB_ID")', ""
    if needed := loading_import(config):
        imports = f"{needed}  # makes the model known to transformers\n"
    if base_model is not None:
        name = base_model if _is_hub_id(base_model) else "FOLDER_OF_THE_BASE_MODEL"
        imports += "from peft import PeftModel\n"
        load = f'PeftModel.from_pretrained({model_class}.from_pretrained("{name}"), "FOLDER_OR_HUB_ID")'
    return f"""## Use

```python
{imports}from PIL import Image
from transformers import {model_class}, {processor_class}

model = {load}
processor = {processor_class}.from_pretrained("FOLDER_OR_HUB_ID")
texts = ["{(domain.prompts[0]).format("one thing")}", "{(domain.prompts[0]).format("another")}"]
inputs = processor(text=texts, images=Image.open("picture.jpg").convert("RGB"), return_tensors="pt", padding=True)
probabilities = model(**inputs).logits_per_image.softmax(dim=1)
```

With the domain's own treatment of pictures and texts, as in training and in the table above:

```python
from hf_clip_domain import ClipEmbedder

embedder = ClipEmbedder.from_pretrained("FOLDER_OR_HUB_ID")
scores = embedder.similarity(["picture.jpg"], texts)
```"""


def _preprocessing(domain: Domain, processor: str) -> str:
    reason = domain.reasons.get("image.square", "")
    if domain.image.square == "pad":
        square = (
            f"fitted whole into a square with padding; plain `{processor}` crops the ends of the longer side instead"
        )
    else:
        square = f"cropped to the central square, as plain `{processor}` does"
    return f"## Pictures and texts\n\nPictures are {square}. {reason} All settings and reasons: `domain.yaml`.".strip()


def _limits(domain: Domain, base_model: str, dataset: str | None) -> str:
    lines = [
        "The scores hold for data like the test split; other data needs its own evaluation.",
        "What the base model knew outside the domain may have been lost in part.",
    ]
    if dataset is None:
        lines.append("Trained on synthetic drawings: it shows that the path works and is of no use on real pictures.")
    if base_model == STARTER:
        lines.append("The starter is a small model; a ViT-B/32 base is far better on every real task.")
    if domain.name == "medical":
        lines.append("Not a medical device, and not to be used for diagnosis.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.startswith(".") and not Path(name).exists()


def _shareable(arguments: dict[str, Any]) -> dict[str, Any]:
    """Without this machine's paths and without secrets."""
    private = {"output_dir", "logging_dir", "hub_token", "push_to_hub_token", "run_name", "resume_from_checkpoint"}
    shared = {key: value for key, value in arguments.items() if key not in private}
    for key in ("dataset", "model_name_or_path", "domain"):
        value = shared.get(key)
        if isinstance(value, str) and ("/" in value or "\\" in value) and not _is_hub_id(value):
            shared[key] = f"(local) {Path(value).name}"
    return shared


def _list(values: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())
