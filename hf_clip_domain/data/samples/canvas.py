"""Drawing helpers: twice the size, then reduced, which makes every line smooth."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SCALE = 2
COLOURS = {
    "red": (205, 45, 45),
    "orange": (235, 140, 35),
    "yellow": (240, 210, 60),
    "green": (50, 150, 70),
    "blue": (45, 95, 200),
    "purple": (130, 70, 170),
    "pink": (235, 130, 170),
    "brown": (130, 85, 50),
    "black": (30, 30, 30),
    "grey": (130, 130, 130),
}


@dataclass
class Drawing:
    """One sample: the picture, what it truly shows in words, its kind, and the numbers behind the words."""

    image: Image.Image
    captions: list[str]
    label: str
    facts: dict = field(default_factory=dict)

    def encode(self) -> bytes:
        """The picture as JPEG."""
        buffer = io.BytesIO()
        self.image.convert("RGB").save(buffer, "JPEG", quality=88)
        return buffer.getvalue()


class Canvas:
    """A picture of `width` x `height` on which coordinates run from 0 to 1 in both directions, origin top left."""

    def __init__(self, width: int, height: int, background=(255, 255, 255)):
        self.width, self.height = width * SCALE, height * SCALE
        if isinstance(background, np.ndarray):
            self.image = Image.fromarray(background).resize((self.width, self.height), Image.BILINEAR).convert("RGB")
        else:
            self.image = Image.new("RGB", (self.width, self.height), background)
        self.pen = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x * self.width, y * self.height

    def line(self, points, colour, width: float = 1.5):
        self.pen.line([self.at(*point) for point in points], fill=colour, width=round(width * SCALE), joint="curve")

    def polygon(self, points, colour, outline=None):
        self.pen.polygon([self.at(*point) for point in points], fill=colour, outline=outline)

    def disc(self, x, y, rx, colour, ry=None, outline=None, width: float = 1):
        """An ellipse; `rx` is a share of the width, `ry` of the height (default: a circle)."""
        cx, cy = self.at(x, y)
        half, tall = rx * self.width, (rx * self.width if ry is None else ry * self.height)
        box = (cx - half, cy - tall, cx + half, cy + tall)
        self.pen.ellipse(box, fill=colour, outline=outline, width=round(width * SCALE))

    def box(self, left, top, right, bottom, colour, outline=None):
        self.pen.rectangle((*self.at(left, top), *self.at(right, bottom)), fill=colour, outline=outline, width=SCALE)

    def arrow(self, start, end, colour, width: float = 1.5):
        self.line([start, end], colour, width)
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        angle = np.arctan2(y1 - y0, x1 - x0)
        size = 5 * SCALE * max(1, width / 2)
        wings = [(x1 + size * np.cos(angle + turn), y1 + size * np.sin(angle + turn)) for turn in (2.6, -2.6)]
        self.pen.polygon([(x1, y1), *wings], fill=colour)

    def text(self, x, y, words, size: int = 10, colour=(30, 30, 30), anchor: str = "mm"):
        self.pen.text(self.at(x, y), words, fill=colour, font=_font(size * SCALE), anchor=anchor)

    def done(self, blur: float = 0) -> Image.Image:
        image = self.image.filter(ImageFilter.GaussianBlur(blur * SCALE)) if blur else self.image
        return image.reduce(SCALE)


_FONTS: dict[int, ImageFont.ImageFont] = {}


def _font(size: int):
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size)
    return _FONTS[size]


class Axes:
    """A plot's frame on a canvas: data coordinates to positions, ticks with numbers, axis names."""

    def __init__(self, canvas: Canvas, xs: tuple[float, float], ys: tuple[float, float], xlabel: str, ylabel: str):
        self.canvas, self.xs, self.ys = canvas, xs, ys
        self.left, self.right, self.top, self.bottom = 0.15, 0.96, 0.08, 0.82
        dark = (40, 40, 40)
        canvas.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], dark)
        for step in range(5):
            x = xs[0] + (xs[1] - xs[0]) * step / 4
            y = ys[0] + (ys[1] - ys[0]) * step / 4
            px, py = self.place(x, y)
            canvas.line([(px, self.bottom), (px, self.bottom + 0.015)], dark, 1)
            canvas.line([(self.left - 0.01, py), (self.left, py)], dark, 1)
            canvas.text(px, self.bottom + 0.05, _number(x), 8)
            canvas.text(self.left - 0.015, py, _number(y), 8, anchor="rm")
        canvas.text((self.left + self.right) / 2, 0.95, xlabel, 10)
        canvas.text(0.02, 0.035, ylabel, 10, anchor="lm")

    def place(self, x, y) -> tuple[float, float]:
        across = (x - self.xs[0]) / (self.xs[1] - self.xs[0])
        up = (y - self.ys[0]) / (self.ys[1] - self.ys[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def curve(self, x, y, colour, width: float = 2):
        self.canvas.line([self.place(*point) for point in zip(x, np.clip(y, *self.ys), strict=True)], colour, width)

    def dots(self, x, y, colour, radius: float = 0.009):
        for point in zip(x, y, strict=True):
            self.canvas.disc(*self.place(*point), radius, colour)

    def bars(self, x, heights, width, colour):
        for centre, height in zip(x, heights, strict=True):
            (left, top), (right, bottom) = self.place(centre - width / 2, height), self.place(centre + width / 2, 0)
            self.canvas.box(left, top, right, bottom, colour, (60, 60, 60))


def noise(rng: np.random.Generator, width: int, height: int, base, spread: float, grain: int = 4) -> np.ndarray:
    """A smooth random texture `(h, w, 3)` around a base colour; `grain` is the size of its blotches in pixels."""
    small = rng.normal(size=(max(2, height // grain), max(2, width // grain)))
    tile = Image.fromarray(((small.clip(-2.5, 2.5) + 2.5) * 51).astype(np.uint8))
    field_ = np.asarray(tile.resize((width, height), Image.BICUBIC), dtype=np.float32) / 51 - 2.5
    return (np.asarray(base, np.float32) + spread * field_[:, :, None]).clip(0, 255).astype(np.uint8)


def shades(rng: np.random.Generator, colour, spread: int = 18) -> tuple[int, int, int]:
    """A colour near the given one."""
    return tuple(int(value) for value in (np.asarray(colour) + rng.integers(-spread, spread + 1, 3)).clip(0, 255))


def place_in_words(x: float, y: float) -> str:
    """Where a point lies, in thirds: "upper left", "centre", "lower right"."""
    row = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    if row and column:
        return f"{row} {column}"
    return f"{row} centre" if row else f"{column} side" if column else "centre"


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """ "three cells", "one cell"."""
    word = NUMBERS[number] if number < len(NUMBERS) else str(number)
    return f"{word} {noun if number == 1 else plural or noun + 's'}"


def one_of(rng: np.random.Generator, options):
    """A random element of a list."""
    return options[int(rng.integers(len(options)))]


def size_of(rng: np.random.Generator) -> tuple[int, int]:
    """A picture's width and height."""
    return one_of(rng, [(224, 168), (224, 192), (208, 208), (240, 160), (192, 192)])


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
