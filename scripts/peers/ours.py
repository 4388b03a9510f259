"""This package: `ClipTrainer` on the prepared batch, and `hf-clip-domain train` for a whole run."""

from __future__ import annotations

from contextlib import nullcontext

from transformers import set_seed

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.assembly import build_trainer, load_parts
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.data.collator import PairCollator
from hf_clip_domain.losses import build_loss
from hf_clip_domain.models.image_positions import at_image_size
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.training import ClipTrainer
from peers.hf_trainer import Metered, arguments
from peers.work import Meter, Work, run


def step(work: Work, meter: Meter) -> None:
    pixels, texts = work.batch_inputs()
    model, processor = load_model(work.model)
    meter.loaded()
    trainer = ClipTrainer(
        model,
        ClipTrainingArguments(**arguments(work, micro_batch_size=work.micro or None)),
        train_dataset=[{"pixel_values": image, "text": text} for image, text in zip(pixels, texts, strict=True)],
        data_collator=PairCollator(processor.tokenizer, relations=()),
        callbacks=[Metered(meter, model)],
    )
    trainer.train()


def adapt(work: Work, meter: Meter) -> None:
    # The command itself with the domain's defaults, but for scores and checkpoints on the way, which the other programs
    # do not write either.
    argv = ["--domain", work.domain, "--dataset", work.dataset, "--model_name_or_path", "starter"]
    argv += ["--per_device_train_batch_size", str(work.batch)]
    argv += ["--output_dir", f"{work.out}/trainer", "--seed", str(work.seed), "--eval_strategy", "no"]
    argv += ["--save_strategy", "no", "--disable_tqdm", "true", "--use_cpu", "true", *work.options]
    options = parse_options(argv)
    set_seed(work.seed)
    model, processor, pairs = load_parts(options, print)
    if options.training.resolutions:
        model, processor = at_image_size(model, processor, options.training.resolutions[-1])
    loss = build_loss(options.training.loss, **(options.training.loss_settings or {}))
    trainer = build_trainer(model, processor, pairs, options, loss)
    trainer.add_callback(Metered(meter, trainer.model, lambda folder: _save(trainer, folder)))
    trainer.train()


def _save(trainer: ClipTrainer, folder: str) -> None:
    """What the run would score and keep at this epoch: the average of the weights, where there is one."""
    with trainer.average.in_place(trainer.model) if trainer.average else nullcontext():
        trainer.model.save_pretrained(folder)


if __name__ == "__main__":
    run(step, adapt)
