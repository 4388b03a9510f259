"""open_clip's own training loop: captions padded to 77, its transform, its accumulation (`--accum-freq`).

open_clip wants torchvision, of which it uses Python code alone; where torchvision's compiled part does not fit the
installed torch, its two operators are declared so that it can be imported.
"""

from __future__ import annotations

import sys
from argparse import Namespace

import torch

from peers.work import DrawnPairs, Meter, Work, run

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    _declared = torch.library.Library("torchvision", "FRAGMENT")  # for as long as the process lives
    for _operator in ("nms", "qnms"):
        _declared.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from peers.open_clip_model import as_open_clip, hugging_face_names


def step(work: Work, meter: Meter) -> None:
    pixels, texts = work.batch_inputs()
    ids = _ids(work, texts)
    data = torch.utils.data.TensorDataset(pixels, ids)
    _train(work, meter, data, None, epochs=work.steps)


def adapt(work: Work, meter: Meter) -> None:
    processor = CLIPImageProcessor.from_pretrained(work.model)
    size = CLIPModel.from_pretrained(work.model).config.vision_config.image_size
    view = open_clip.image_transform(size, is_train=True, mean=processor.image_mean, std=processor.image_std)

    def collate(items):
        return torch.stack([view(item["image"]) for item in items]), _ids(work, [item["text"] for item in items])

    _train(work, meter, DrawnPairs(work), collate, epochs=work.epochs)


def _train(work: Work, meter: Meter, data, collate, epochs: int) -> None:
    plain = CLIPModel.from_pretrained(work.model, dtype=torch.float32)
    model = as_open_clip(plain)
    accumulate = work.batch // work.micro if work.micro else 1
    loader = torch.utils.data.DataLoader(
        data, batch_size=work.batch // accumulate, shuffle=True, drop_last=True, collate_fn=collate
    )
    loader.num_batches, loader.num_samples = len(loader) // accumulate * accumulate, len(data)
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if p.ndim < 2], "weight_decay": 0.0},
            {"params": decayed, "weight_decay": work.weight_decay},
        ],
        lr=work.learning_rate,
    )
    meter.keep_gradient(optimizer, lambda: hugging_face_names(model, plain, gradient=True))
    steps, warmup = (work.steps, 0) if work.mode == "step" else work.steps_of_all()
    scheduler = cosine_lr(optimizer, work.learning_rate, warmup, steps)
    options = Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=accumulate,
        skip_scheduler=False,
        horovod=False,
        grad_clip_norm=None if work.mode == "step" else 1.0,
        log_every_n_steps=10,
        batch_size=work.batch // accumulate,
        world_size=1,
        rank=0,
        distributed=False,
        wandb=False,
    )
    streams = {"train": Namespace(set_epoch=lambda epoch: None, dataloader=_Whole(loader))}
    loss = open_clip.ClipLoss()
    meter.loaded()
    meter.start()
    for epoch in range(epochs):
        train_one_epoch(model, streams, loss, epoch, optimizer, None, scheduler, None, options)
        if work.mode == "step":
            meter.stop()
            meter.start()
        else:
            meter.epoch(lambda folder: _save(model, plain, folder))


class _Whole:
    """A loader that ends after whole accumulated batches, as open_clip's sized datasets do."""

    def __init__(self, loader) -> None:
        self.loader, self.num_batches, self.num_samples = loader, loader.num_batches, loader.num_samples

    def __iter__(self):
        return (batch for batch, _ in zip(self.loader, range(self.num_batches), strict=False))


def _save(model, plain: CLIPModel, folder: str) -> None:
    plain.load_state_dict(hugging_face_names(model, plain), strict=False)
    plain.save_pretrained(folder)


def _ids(work: Work, texts: list[str]) -> torch.Tensor:
    if not hasattr(_ids, "tokenizer"):
        _ids.tokenizer = AutoTokenizer.from_pretrained(work.model)
    words = _ids.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return words["input_ids"]


if __name__ == "__main__":
    run(step, adapt)
