"""The parts of a run put together: pairs from the options, and a trainer from pairs, model and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets
from torch import nn
from transformers.utils import logging

from hf_clip_domain import memory
from hf_clip_domain.arguments import ClipTrainingArguments, DataArguments
from hf_clip_domain.cli.options import RunOptions
from hf_clip_domain.cli.sources import samples_of
from hf_clip_domain.data.collator import PairCollator
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.pairs import PairDataset, PairStream
from hf_clip_domain.data.text import clean_caption, count_cut_captions
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.device import describe as describe_device
from hf_clip_domain.domains import Domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import RetrievalEvaluator
from hf_clip_domain.models.adapters import add_adapter
from hf_clip_domain.models.depth import describe_trained
from hf_clip_domain.models.dual_encoder import text_padding
from hf_clip_domain.models.freezing import freeze
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.models.precision import record_precision
from hf_clip_domain.serving.registry import local_name
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.batch_size import choose_batch_size
from hf_clip_domain.types import Evaluator

logger = logging.get_logger(__name__)

SMOKE_ROWS = 64


def load_parts(options: RunOptions, say) -> tuple[nn.Module, Any, DatasetDict]:
    """Model (on its device), processor and pairs of a run; `say` tells the user what was found."""
    training = options.training
    say(announcement(options))
    say(f"Training on {describe_device(training.device)} in {training.precision_choice}.")
    model, processor = load_model(
        local_name(options.model.model_name_or_path),
        max_text_length=options.model.max_text_length,
        revision=options.model.model_revision,
        attention_slicing=options.model.attention_slicing,
    )
    model = adapt(model, options, say)
    with training.main_process_first(desc="reading the dataset"):
        # Every process reads the same rows; one of them keeps the record of what was set aside.
        quarantine = Path(training.output_dir) / "quarantine.jsonl" if training.process_index == 0 else None
        pairs = read_pairs(options.data, options.domain, quarantine, training.seed, smoke=options.smoke)
        pairs = with_replay(pairs, options.data, training.seed)
    if training.process_index == 0:
        record_precision(training.precision_choice, training.device, Path(training.output_dir))
    say(describe(pairs, options.domain, processor))
    return model.to(training.device), processor, pairs


def adapt(model: nn.Module, options: RunOptions, say) -> nn.Module:
    """The model with an adapter, or partly frozen, as the options say; `say` tells how much of it trains."""
    choice, base = options.adaptation, local_name(options.model.model_name_or_path)
    if choice.adapter != "none":
        model = add_adapter(
            model,
            choice.adapter,
            rank=choice.lora_rank,
            alpha=choice.lora_alpha,
            dropout=choice.lora_dropout,
            towers=choice.lora_towers,
            base_name=str(Path(base).expanduser().resolve()) if Path(base).expanduser().is_dir() else base,
            base_revision=options.model.model_revision,
        )
    elif choice.freeze:
        freeze(model, choice.freeze)
    else:
        return model
    say(describe_trained(model))
    return model


def read_pairs(
    data: DataArguments, domain: Domain, quarantine_file: Path | None, seed: int, *, smoke: bool
) -> DatasetDict:
    """The splits of the user's dataset, or of the domain's embedded samples; held-out splits always fit on disk.

    Raises:
        ClipDomainError: unreadable data, a domain without samples, or a split that is missing.
    """
    if data.dataset is None:
        sizes = {"train": SMOKE_ROWS, "validation": SMOKE_ROWS, "test": SMOKE_ROWS} if smoke else {}
        return samples_of(domain, **sizes)
    pairs = load_pairs(
        data.dataset,
        image_column=data.image_column,
        text_column=data.text_column,
        label_column=data.label_column,
        group_column=data.group_column,
        streaming=data.streaming,
        revision=data.dataset_revision,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        max_bad_fraction=data.max_bad_fraction,
        quarantine_file=quarantine_file,
        seed=seed,
    )
    if "train" not in pairs:
        raise ClipDomainError(f"{data.dataset} has no training split; found: {', '.join(pairs)}.")
    if "test" not in pairs and "validation" not in pairs:
        raise ClipDomainError(
            f"{data.dataset} has no held-out split to score on: give --test_fraction or --validation_fraction above 0."
        )
    if "test" not in pairs:
        logger.warning(f"{data.dataset} has no test split: the validation split is scored before and after instead.")
        pairs["test"] = pairs["validation"]
    if data.streaming:
        for name in set(pairs) - {"train"}:
            pairs[name] = Dataset.from_generator(pairs[name].__iter__, features=pairs[name].features)
    if smoke and not data.streaming:
        pairs = DatasetDict({name: rows.select(range(min(SMOKE_ROWS, len(rows)))) for name, rows in pairs.items()})
    return pairs


def with_replay(pairs: DatasetDict, data: DataArguments, seed: int) -> DatasetDict:
    """`pairs` whose training split also holds general pairs (`--replay_dataset`), drawn by chance, always the same.

    To go on seeing what the base model knew holds against forgetting it: Robins 1995, "Catastrophic forgetting,
    rehearsal and pseudorehearsal".

    Raises:
        ClipDomainError: an unreadable source, or one without training pairs.
    """
    if data.replay_dataset is None:
        return pairs
    general = load_pairs(data.replay_dataset, validation_fraction=0, test_fraction=0, seed=seed)
    if "train" not in general:
        raise ClipDomainError(f"--replay_dataset {data.replay_dataset} has no training split.")
    rows = min(data.replay_rows or len(pairs["train"]), len(general["train"]))
    drawn = general["train"].shuffle(seed=0).select(range(rows))
    return DatasetDict({**pairs, "train": concatenate_datasets([pairs["train"], drawn])})


def build_trainer(
    model,
    processor,
    pairs: DatasetDict,
    options: RunOptions,
    loss: nn.Module,
    relations: tuple[str, ...] = (),
    kind: type[ClipTrainer] = ClipTrainer,
    probe: Evaluator | None = None,
    **more: Any,
) -> ClipTrainer:
    """A trainer on the training split that is evaluated on the validation split.

    Args:
        probe: scores the model at every evaluation besides.
        relations: what batches shall tell about rows besides what `loss` needs.
        kind, more: another class of trainer, and its further arguments.

    Raises:
        ClipDomainError: a stream without `--max_steps`, or a loss that needs labels where the data has none.
    """
    training: ClipTrainingArguments = options.training
    transform = ImageTransform(options.domain, *image_settings(processor))
    relations = tuple(dict.fromkeys((*getattr(loss, "relations", ("caption",)), *relations)))
    choices = {"seed": training.seed, "captions": options.data.captions, "relations": relations}
    unlabelled = not options.data.streaming and not any(pairs["train"]["label"])
    if unlabelled and "label" in relations and training.loss_settings == options.domain.loss_settings:
        logger.warning("No row has a label: equal captions alone count as positives (--label_column names the column).")
    elif unlabelled and "label" in relations:
        raise ClipDomainError(
            "the loss takes rows of the same label as positives, and no row has a label: name its column with "
            "--label_column, or leave the label out: --loss_settings '{positives: {caption: 1}}'."
        )
    if options.data.streaming:
        if training.max_steps <= 0:
            raise ClipDomainError("--streaming does not know the number of rows: give --max_steps.")
        # Every process reads the stream itself; one that read for all could not hand on batches of several lengths.
        training.accelerator_config.dispatch_batches = False
        train_data = PairStream(pairs["train"], transform, options.domain, train=True, **choices)
    else:
        train_data = PairDataset(pairs["train"], transform, options.domain, train=True, **choices)
    if training.choose_batch_size:
        training.per_device_train_batch_size = choose_batch_size(
            None if options.data.streaming else len(pairs["train"]),
            processes=training.world_size,
            image_size=transform.size,
            room=memory.room(training.device),
        )
        logger.warning(f"The contrastive batch is {training.per_device_train_batch_size} pairs a process.")
    evaluators, validation = [], None
    if "validation" in pairs:
        evaluators = [
            RetrievalEvaluator(
                pairs["validation"],
                processor,
                domain=options.domain,
                batch_size=training.per_device_eval_batch_size,
                similarity=similarity_of(loss),
            ),
            *([probe] if probe is not None else []),
        ]
        validation = PairDataset(pairs["validation"], transform, options.domain, train=False, relations=relations)
    return kind(
        model=None if "model_init" in more else model,
        args=more.pop("args", training),
        train_dataset=train_data,
        eval_dataset=validation,
        loss=loss,
        data_collator=PairCollator(
            processor.tokenizer,
            max_text_length=text_capacity(model),
            padding=text_padding(model),
            relations=relations,
        ),
        processing_class=processor,
        evaluators=evaluators,
        **more,
    )


def similarity_of(loss: nn.Module):
    """By which a model trained with `loss` is to be used."""
    return getattr(loss, "similarity", "cosine")


def announcement(options: RunOptions) -> str:
    data, model = options.data, options.model
    if data.dataset is not None:
        return f"Domain {options.domain.name}: adapting {model.model_name_or_path} to {data.dataset}."
    return (
        f"Domain {options.domain.name}: adapting {model.model_name_or_path} to the embedded synthetic samples. "
        f"Your own data: accelerate launch recipes/finetune.py --domain {data.domain} --dataset path/or/hub-id"
    )


def describe(pairs: DatasetDict, domain: Domain, processor) -> str:
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in pairs.items() if hasattr(rows, "__len__"))
    if not hasattr(pairs["train"], "__len__"):
        return f"Pairs: {sizes}, a stream of training pairs."
    texts = [clean_caption(text, domain) for texts in pairs["train"]["text"] for text in texts]
    limit = processor.tokenizer.model_max_length
    cut, total = count_cut_captions(texts, processor.tokenizer, limit)
    return (
        f"Pairs: {sizes}. {cut:,} of {total:,} training captions ({cut / total:.0%}) are longer than {limit} tokens "
        "and cut" + (" (see --captions sentence and --max_text_length)." if cut else ".")
    )
