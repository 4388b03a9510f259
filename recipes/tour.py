# %% [markdown]
# # A tour in a minute or two on a CPU
#
# `python recipes/tour.py`, or cell by cell in an editor that knows `# %%`. Offline: the starter model and drawn samples,
# which are synthetic. `--train 64` is shorter, and shows less.

# %%
import argparse
from pathlib import Path

from hf_clip_domain import (
    ClipEmbedder,
    ClipTrainer,
    ClipTrainingArguments,
    PairCollator,
    RetrievalEvaluator,
    load_domain,
    load_model,
    merge_weights,
)
from hf_clip_domain.data.pairs import PairDataset
from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.embedder import image_settings

parser = argparse.ArgumentParser(description="The package in one script: adapt, evaluate, merge, embed, search.")
parser.add_argument("--train", type=int, default=400, help="Pairs to train on. Default: 400.")
parser.add_argument("--output", type=Path, default=Path("outputs/tour"), help="Folder. Default: outputs/tour.")
options, _ = parser.parse_known_args()  # a notebook has arguments of its own

# %% Pairs: pictures with captions; yours come from `load_pairs("pairs.csv")`
held_out = {"validation": options.train // 6, "test": options.train // 3}
pairs = load_samples("scientific", train=options.train, **held_out)
general = load_samples("general", train=1, **held_out)
print(pairs["train"][0]["text"])

# %% A domain: how pictures and captions of a field are treated, with reasons in its YAML file
domain = load_domain("scientific")
print(domain.description, "Mirrored:", domain.augment.mirror, "Prompts:", domain.prompts[:2])

# %% A model, and what scores it: retrieval on pairs it never learns from, and on general ones
model, processor = load_model("starter")
base = {name: weight.clone() for name, weight in model.state_dict().items()}


def recall(split, of):
    """Mean Recall@10 of both directions in percent."""
    scores = RetrievalEvaluator(of[split], processor, domain=domain)(model)
    return 50 * (scores["image_to_text/recall@10"] + scores["text_to_image/recall@10"])


before = {"domain": recall("test", pairs), "general": recall("test", general)}

# %% Adapt: a contrastive batch of 64, of which 16 pictures are embedded at once
transform = ImageTransform(domain, *image_settings(processor))
arguments = ClipTrainingArguments(
    str(options.output / "run"),
    per_device_train_batch_size=64,
    micro_batch_size=16,
    num_train_epochs=4,
    learning_rate=domain.training_starter["learning_rate"],
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = ClipTrainer(
    model,
    arguments,
    train_dataset=PairDataset(pairs["train"], transform, domain, train=True),
    data_collator=PairCollator(processor.tokenizer),
)
trainer.train()
after = {"domain": recall("test", pairs), "general": recall("test", general)}

# %% Merge: of the models between base and tuned one, the best for the domain that loses at most 3 points in general
tuned = {name: weight.clone() for name, weight in model.state_dict().items()}
scored = {}
for alpha in (0, 0.25, 0.5, 0.75, 1):  # judged on validation pairs: the test pairs choose nothing
    model.load_state_dict(merge_weights(base, tuned, alpha))
    scored[alpha] = recall("validation", pairs), recall("validation", general)
within = [alpha for alpha, (_, kept) in scored.items() if kept >= scored[0][1] - 3]
chosen = max(within, key=lambda alpha: scored[alpha][0])
model.load_state_dict(merge_weights(base, tuned, chosen))
merged = {"domain": recall("test", pairs), "general": recall("test", general)}
for name, scores in {"before": before, "tuned": after, f"merged, {chosen:g} of the way": merged}.items():
    print(f"{name:<24} domain {scores['domain']:5.1f}   general {scores['general']:5.1f}   (mean Recall@10 in percent)")

# %% Keep it: a folder that `CLIPModel.from_pretrained` loads, as `hf-clip-domain serve` does
model.save_pretrained(options.output / "model"), processor.save_pretrained(options.output / "model")

# %% Embed and search
embedder = ClipEmbedder.from_pretrained(str(options.output / "model"))
pictures = embedder.embed_images(row["bytes"] for row in pairs["test"]["image"])  # (n, d)
scores = embedder.similarity(pictures, ["a bar chart", "a scatter plot"])  # (n, 2)
for best in scores.topk(3, dim=0).indices.T.tolist():
    print([pairs["test"][index]["text"][0] for index in best])
