"""sentence-transformers on a CLIP, with its cached ranking loss: both directions, at the model's own temperature.

That makes it CLIP's loss with a fixed temperature (sentence-transformers does not learn one). Captions are padded to the
longest of the batch, pictures go through the model's own processor.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from PIL import Image  # noqa: F401  (the processor is the Pillow one)
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from peers.hf_trainer import Metered, arguments
from peers.work import DrawnPairs, Meter, Work, run


def step(work: Work, meter: Meter) -> None:
    pixels, texts = work.batch_inputs()

    def collate(model, rows):
        pictures = {"pixel_values": torch.stack([pixels[row] for row in rows]), "modality": "image"}
        return pictures, model.preprocess([texts[row] for row in rows])

    _train(work, meter, len(texts), collate)


def adapt(work: Work, meter: Meter) -> None:
    data = DrawnPairs(work)

    def collate(model, rows):
        items = [data[row] for row in rows]
        return model.preprocess([i["image"] for i in items]), model.preprocess([i["text"] for i in items])

    _train(work, meter, len(data), collate)


def _train(work: Work, meter: Meter, rows: int, collate) -> None:
    model = SentenceTransformer(work.model, device="cpu", model_kwargs={"dtype": torch.float32})
    clip = model[0].model
    loss = CachedMultipleNegativesRankingLoss(
        model,
        scale=clip.logit_scale.exp().item(),
        mini_batch_size=work.micro or 32,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )

    class Collator:
        valid_label_columns = ["label"]

        def __call__(self, items):
            pictures, words = collate(model, [item["anchor"] for item in items])
            return {f"anchor_{k}": v for k, v in pictures.items()} | {f"positive_{k}": v for k, v in words.items()}

    meter.loaded()
    # Both columns hold the number of the row: the collator reads picture and caption, as the other programs' do.
    data = Dataset.from_dict({"anchor": list(range(rows)), "positive": list(range(rows))})
    options = SentenceTransformerTrainingArguments(**arguments(work))
    SentenceTransformerTrainer(
        model=model,
        args=options,
        train_dataset=data,
        loss=loss,
        data_collator=Collator(),
        callbacks=[Metered(meter, clip)],
    ).train()


if __name__ == "__main__":
    run(step, adapt)
