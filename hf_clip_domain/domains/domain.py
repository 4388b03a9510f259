"""The knowledge of a domain as frozen dataclasses; `loading` reads them from YAML."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from hf_clip_domain.domains.metrics import DomainMetric

# Words that a mirrored picture would turn into a lie.
SIDED_WORDS = (
    "left",
    "right",
    "clockwise",
    "counterclockwise",
    "anticlockwise",
    "lateral",
    "medial",
    "east",
    "west",
)
# Words that a picture turned by 90, 180 or 270 degrees would turn into a lie.
PLACED_WORDS = (
    "upper",
    "lower",
    "top",
    "bottom",
    "above",
    "below",
    "under",
    "over",
    "beneath",
    "vertical",
    "horizontal",
    "north",
    "south",
    "upside",
    "upright",
    "upward",
    "downward",
    "row",
    "column",
)
_ENDINGS = r"(?:most|wards?|ern|hand|side|ly|s)?"


@dataclass(frozen=True)
class ImagePolicy:
    """How a picture becomes a square, in training and in evaluation alike.

    Attributes:
        square: "pad" shows the whole picture with borders, "crop" fills the square and loses the ends of the longer
            side, "auto" pads a figure (a picture on plain ground, such as a chart) and crops a photograph; it also
            keeps figures, which may hold writing, from being mirrored.
        fill: colour of the borders: "edge" is the commonest colour along the picture's own edge.
        grey: drop the colour (three equal channels).
        window: two percentiles of brightness stretched to black and white, or none.
        clahe_clip: clip limit of contrast-limited adaptive histogram equalisation, as a multiple of the mean bin
            height; 0 is off, 2 gentle, 4 strong.
        clahe_tiles: tiles along each side for it.
    """

    square: Literal["pad", "crop", "auto"] = "pad"
    fill: Literal["edge", "white", "black", "grey"] = "edge"
    grey: bool = False
    window: tuple[float, float] | None = None
    clahe_clip: float = 0.0
    clahe_tiles: int = 4


@dataclass(frozen=True)
class AugmentPolicy:
    """Which changes of a training picture leave its caption true.

    Attributes:
        crop_scale: smallest and largest share of the square's area that a view covers; above 1 shows the picture
            smaller, with more border, and has no effect where pictures are cropped.
        aspect: narrowest and widest stretch of a view (width over height).
        mirror: "never", "always" (every second view), or "unless_sided": not for a caption with one of `sided_words`.
        quarter_turns: "never", "always" (any of the four), or "unless_placed": not for a caption with one of
            `sided_words` or `placed_words`.
        brightness, contrast, saturation: largest relative change, 0 is none.
        hue: largest turn of the colour circle, as a share of it (0 to 0.5).
        sided_words, placed_words: whole words, any case; endings such as -most, -ward and -ern are understood.
    """

    crop_scale: tuple[float, float] = (0.8, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    mirror: Literal["never", "unless_sided", "always"] = "never"
    quarter_turns: Literal["never", "unless_placed", "always"] = "never"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    sided_words: tuple[str, ...] = SIDED_WORDS
    placed_words: tuple[str, ...] = PLACED_WORDS

    def may_mirror(self, caption: str) -> bool:
        """Whether the caption stays true when left and right are exchanged."""
        return self.mirror == "always" or (self.mirror == "unless_sided" and not self._sided.search(caption))

    def may_turn(self, caption: str) -> bool:
        """Whether the caption stays true when the picture is turned by quarters."""
        if self.quarter_turns == "unless_placed":
            return not self._sided.search(caption) and not self._placed.search(caption)
        return self.quarter_turns == "always"

    @cached_property
    def _sided(self) -> re.Pattern[str]:
        return _words(self.sided_words)

    @cached_property
    def _placed(self) -> re.Pattern[str]:
        return _words(self.placed_words)


@dataclass(frozen=True)
class Rewrite:
    """One clean-up of captions: every match of `pattern` (a Python regular expression) becomes `replace`."""

    pattern: str
    replace: str = ""


@dataclass(frozen=True)
class TextPolicy:
    """How a caption is cleaned before the tokenizer sees it, in training, evaluation and search alike.

    Attributes:
        rewrites: by name, applied in the order given.
        glossary: abbreviation (whole word, exact case) -> words; its first use becomes "words (abbreviation)".
    """

    rewrites: dict[str, Rewrite] = field(default_factory=dict)
    glossary: dict[str, str] = field(default_factory=dict)

    @cached_property
    def compiled(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple((re.compile(rewrite.pattern), rewrite.replace) for rewrite in self.rewrites.values())

    @cached_property
    def abbreviations(self) -> re.Pattern[str] | None:
        """Matches any abbreviation of the glossary as a whole word."""
        longest_first = sorted(self.glossary, key=len, reverse=True)
        if not longest_first:
            return None
        return re.compile(rf"(?<![\w&])(?:{'|'.join(map(re.escape, longest_first))})(?![\w&])")


@dataclass(frozen=True)
class Domain:
    """Everything the rest of the package asks about a field.

    Attributes:
        name, title, description: for folders, headings and model cards.
        base_model: Hub id to adapt when the user names none.
        loss: name of the loss, or "package.module:Class".
        loss_settings: its settings, such as positives and negatives.
        training: default values of training-argument fields.
        training_starter: what replaces them for the small model shipped with the package.
        training_towers: what replaces them for `towers`, whose heads alone train unless told otherwise.
        image, augment, text: the treatment of pictures and captions.
        prompts: templates with "{}" for a class name; their embeddings are averaged.
        classes: what zero-shot classification tells apart when the data names no labels.
        metrics: keys of the evaluation worth looking at, the most telling first, and what to measure beyond retrieval.
        terminology: whose terms and sentences the text tower is tested on: a packaged name, or the path of a YAML file.
        reasons: dotted path of a setting -> why it has its value.
    """

    name: str
    title: str = ""
    description: str = ""
    base_model: str = "openai/clip-vit-base-patch32"
    loss: str = "info_nce"
    loss_settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    training_starter: dict[str, Any] = field(default_factory=dict)
    training_towers: dict[str, Any] = field(default_factory=dict)
    image: ImagePolicy = ImagePolicy()
    augment: AugmentPolicy = AugmentPolicy()
    text: TextPolicy = TextPolicy()
    prompts: tuple[str, ...] = ("a picture of {}.",)
    classes: tuple[str, ...] = ()
    metrics: tuple[Any, ...] = ("text_to_image/mrr", "image_to_text/mrr")
    terminology: str = "general"
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[DomainMetric, ...]:
        """The entries of `metrics` that are no keys: what to measure beyond retrieval."""
        return tuple(metric for metric in self.metrics if not isinstance(metric, str))

    def to_dict(self) -> dict[str, Any]:
        """Plain values (str, numbers, lists, dicts), fit for JSON and YAML."""
        return _plain(dataclasses.asdict(self))

    def save(self, folder: str | Path) -> Path:
        """Write `folder/domain.yaml`, which `load_domain` reads back to an equal `Domain`."""
        file = Path(folder) / "domain.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = self.to_dict()
        reasons = settings.pop("reasons")
        text = yaml.safe_dump(_with_reasons(settings, reasons), sort_keys=False, allow_unicode=True, width=110)
        file.write_text(text, encoding="utf-8")
        return file


def _words(words: tuple[str, ...]) -> re.Pattern[str]:
    if not words:
        return re.compile(r"(?!)")  # matches nothing
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))}){_ENDINGS}\b", re.IGNORECASE)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _with_reasons(settings: dict[str, Any], reasons: dict[str, str], path: str = "") -> dict[str, Any]:
    """Settings as the YAML files hold them: `{value, reason}` where there is a reason."""
    result = {}
    for key, value in settings.items():
        where = f"{path}{key}"
        if isinstance(value, dict) and where not in reasons:
            value = _with_reasons(value, reasons, f"{where}.")
        result[key] = {"value": value, "reason": reasons[where]} if where in reasons else value
    return result
