"""Which pairs are learned from, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_clip_domain.errors import ClipDomainError


@dataclass
class DataArguments:
    """Which pairs to learn from, and how to read them; raises `ClipDomainError` for values out of range."""

    _argument_group_name = "data"

    domain: str = field(
        default="general", metadata={"help": "medical, industrial, scientific, general, or the path of a YAML file."}
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, JSON, JSONL, Parquet, a folder of pictures with captions, WebDataset shards, a Hub id, "
            "or dvc:REVISION[:PATH] of data that DVC tracks. Default: the domain's embedded synthetic samples."
        },
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the picture, when not found by name."})
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the caption(s), when not found by name."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the class label, if any."})
    group_column: str | None = field(
        default=None, metadata={"help": "Column whose equal values (patient, document) never straddle two splits."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read rows as they come; for data larger than memory."})
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of the data held out for choosing the best checkpoint, if no split is given."},
    )
    test_fraction: float = field(
        default=0.1, metadata={"help": "Share of the data held out for the final scores, if no split is given."}
    )
    max_bad_fraction: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the rows had to be set aside."}
    )
    captions: str = field(
        default="truncate",
        metadata={
            "help": "Captions longer than the model reads: 'truncate' them, or learn from one random 'sentence' of the "
            "caption an epoch.",
            "choices": ["truncate", "sentence"],
        },
    )
    probe_dataset: str = field(
        default="samples",
        metadata={
            "help": "General pairs on which forgetting is measured at every evaluation: as for --dataset, 'samples' for "
            "the embedded general ones (synthetic), or 'none'."
        },
    )
    probe_domain: str = field(
        default="general", metadata={"help": "Domain by which the probe's pictures and texts are treated."}
    )
    probe_rows: int = field(
        default=500, metadata={"help": "Most rows of the probe in training, and most before and after."}
    )

    replay_dataset: str | None = field(
        default=None,
        metadata={
            "help": "General pairs to train on besides, so that less is forgotten: as for --dataset; its training split is "
            "used, with the domain's treatment of pictures and texts. Default: none."
        },
    )
    replay_rows: int | None = field(
        default=None,
        metadata={"help": "Most rows of it. Default: as many as the dataset has for training."},
    )

    def __post_init__(self):
        for name in ("validation_fraction", "test_fraction", "max_bad_fraction"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ClipDomainError(f"--{name} {value}: expected a share from 0 to below 1, such as 0.1.")
        if self.replay_rows is not None and (self.replay_rows < 1 or self.replay_dataset is None):
            raise ClipDomainError(
                f"--replay_rows {self.replay_rows}: expected 1 or more rows of a --replay_dataset, which is "
                f"{self.replay_dataset or 'not given'}."
            )
        if self.replay_dataset is not None and self.streaming:
            raise ClipDomainError(
                "--replay_dataset with --streaming: a stream cannot be mixed; leave out one of the two."
            )
        if self.probe_rows < 1:
            raise ClipDomainError(
                f"--probe_rows {self.probe_rows}: expected 1 or more ('--probe_dataset none' for none)."
            )
