"""transformers' Trainer and `CLIPModel`, as its example of contrastive image-text training has them.

Captions are padded to 77 tokens, pictures go through the model's own processor, the batch is embedded at once.
"""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, Trainer, TrainingArguments

from peers.hf_trainer import Metered, arguments
from peers.work import DrawnPairs, Meter, Work, run


def step(work: Work, meter: Meter) -> None:
    pixels, texts = work.batch_inputs()
    words = _words(AutoTokenizer.from_pretrained(work.model), texts)
    items = [
        {"pixel_values": image, "input_ids": ids, "attention_mask": mask}
        for image, ids, mask in zip(pixels, words["input_ids"], words["attention_mask"], strict=True)
    ]
    _train(work, meter, items, _stack)


def adapt(work: Work, meter: Meter) -> None:
    tokenizer, processor = AutoTokenizer.from_pretrained(work.model), CLIPImageProcessor.from_pretrained(work.model)

    def collate(items):
        pictures = processor([item["image"] for item in items], return_tensors="pt")
        return {**pictures, **_words(tokenizer, [item["text"] for item in items]), "return_loss": True}

    _train(work, meter, DrawnPairs(work), collate)


def _train(work: Work, meter: Meter, data, collate) -> None:
    model = CLIPModel.from_pretrained(work.model, dtype=torch.float32)
    meter.loaded()
    options = TrainingArguments(**arguments(work, remove_unused_columns=False))
    Trainer(model, options, train_dataset=data, data_collator=collate, callbacks=[Metered(meter, model)]).train()


def _words(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"))


def _stack(items) -> dict:
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    return {**batch, "return_loss": True}


if __name__ == "__main__":
    run(step, adapt)
