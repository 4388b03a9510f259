"""Synthetic inspection pictures: a surface, and defects that are placed, sized and named."""

from __future__ import annotations

import numpy as np

from hf_clip_domain.data.samples.canvas import Canvas, Drawing, count, noise, one_of, place_in_words, shades, size_of

DEFECTS = {
    "scratch": "scratches",
    "crack": "cracks",
    "cluster of pits": "clusters of pits",
    "inclusion": "inclusions",
    "stain": "stains",
    "hole": "holes",
    "dent": "dents",
}
# Millimetres across the width of the picture, so that sizes can be stated.
FIELD_MM = 50


def _brushed(rng, width, height):
    rows = rng.normal(size=(height, 1, 1)) * 9 + rng.normal(size=(height, width, 1)) * 5
    return (np.asarray(shades(rng, (165, 168, 172))) + rows).clip(0, 255).astype(np.uint8)


def _cast(rng, width, height):
    return noise(rng, width, height, shades(rng, (110, 108, 105)), 16, 3)


def _woven(rng, width, height):
    y, x = np.mgrid[:height, :width]
    period = rng.integers(4, 9)
    weave = np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period) * 22 + rng.normal(size=(height, width)) * 4
    return (np.asarray(shades(rng, (120, 130, 160), 40)) + weave[:, :, None]).clip(0, 255).astype(np.uint8)


def _wooden(rng, width, height):
    y, x = np.mgrid[:height, :width]
    rings = np.sin(y / rng.uniform(3, 7) + 2.2 * np.sin(x / rng.uniform(30, 70)) + rng.uniform(0, 6)) * 14
    return (np.asarray(shades(rng, (176, 128, 80))) + rings[:, :, None]).clip(0, 255).astype(np.uint8)


def _solar(rng, width, height):
    picture = noise(rng, width, height, shades(rng, (70, 70, 74), 10), 9, 24)
    picture[:, :: max(1, width // 12)] //= 2
    for bar in (0.25, 0.5, 0.75):
        row = int(bar * height)
        picture[row : row + 2] = 25
    return picture


def _glass(rng, width, height):
    return noise(rng, width, height, shades(rng, (196, 214, 216), 10), 4, 40)


SURFACES = {
    "brushed steel sheet": _brushed,
    "cast iron surface": _cast,
    "woven fabric": _woven,
    "wooden board": _wooden,
    "solar cell": _solar,
    "glass pane": _glass,
}


def surface(rng) -> Drawing:
    """One surface with up to four defects of one kind; about one in six has none."""
    material = one_of(rng, list(SURFACES))
    width, height = size_of(rng)
    canvas = Canvas(width, height, SURFACES[material](rng, width, height))
    batch = int(rng.integers(1000, 10000))
    if rng.random() < 1 / 6:
        captions = [
            f"{material.capitalize()} without any defect, {FIELD_MM} mm field of view, part {batch}.",
            f"Part {batch}: a {material} in good order, no scratches, cracks or stains.",
        ]
        _part_number(canvas, batch)
        return Drawing(canvas.done(), captions, "no defect", {"defects": 0})
    kind = one_of(rng, list(DEFECTS))
    number = int(rng.integers(1, 5))
    places, sizes = [], []
    for x, y, reach in _spots(rng, number, 0.22 if kind in ("scratch", "crack") else 0.1, width / height):
        _draw_defect(rng, canvas, kind, x, y, reach)
        places.append(place_in_words(x, y))
        sizes.append(round(2 * reach * FIELD_MM, 1))
    number = len(sizes)
    _part_number(canvas, batch)
    where = "; ".join(f"{place}, {size} mm" for place, size in zip(places, sizes, strict=True))
    captions = [
        f"{material.capitalize()} with {count(number, kind, DEFECTS[kind])}: {where}.",
        f"Part {batch}: a {material} shows {count(number, kind, DEFECTS[kind])}, the largest of {max(sizes)} mm in the "
        f"{places[int(np.argmax(sizes))]}.",
    ]
    return Drawing(canvas.done(), captions, kind, {"defects": number, "sizes": sizes, "places": places})


def _spots(rng, number: int, largest: float, stretch: float) -> list[tuple[float, float, float]]:
    """Up to `number` places `(x, y, reach)`, whole within the picture, above the part number, none over another.

    `reach` is half of a defect's largest extent as a share of the picture's width; `stretch` is width by height.
    """
    spots: list[tuple[float, float, float]] = []
    for _ in range(60):
        reach = float(rng.uniform(0.04, largest))
        x = float(rng.uniform(reach + 0.02, 0.98 - reach))
        y = float(rng.uniform(reach * stretch + 0.02, 0.9 - reach * stretch))
        if all(np.hypot(x - other[0], (y - other[1]) / stretch) > 1.1 * (reach + other[2]) for other in spots):
            spots.append((x, y, reach))
        if len(spots) == number:
            break
    return spots


def _draw_defect(rng, canvas: Canvas, kind: str, x: float, y: float, reach: float) -> None:
    """One defect that extends `reach` (a share of the width) to both sides of its middle along its longest axis."""
    dark, light = shades(rng, (45, 42, 40)), shades(rng, (225, 225, 220))
    stretch = canvas.width / canvas.height
    if kind == "scratch":
        angle = rng.uniform(0, np.pi)
        dx, dy = reach * np.cos(angle), reach * np.sin(angle) * stretch
        canvas.line([(x - dx, y - dy), (x + dx, y + dy)], light if rng.random() < 0.6 else dark, rng.uniform(0.8, 2))
    elif kind == "crack":
        angle = rng.uniform(0, np.pi)
        along = reach * np.linspace(-1, 1, 9)
        aside = reach * rng.normal(scale=0.12, size=9)
        aside[[0, -1]] = 0  # from tip to tip it is as long as stated
        points = [
            (x + a * np.cos(angle) - b * np.sin(angle), y + (a * np.sin(angle) + b * np.cos(angle)) * stretch)
            for a, b in zip(along, aside, strict=True)
        ]
        canvas.line(points, dark, rng.uniform(1, 2.2))
    elif kind == "cluster of pits":
        for dx, dy, radius in _cluster(rng, reach, int(rng.integers(5, 10)), (0.06, 0.2)):
            canvas.disc(x + dx, y + dy * stretch, radius, dark)
    elif kind == "inclusion":
        canvas.disc(x, y, reach, dark, ry=reach * stretch * rng.uniform(0.4, 0.7))
    elif kind == "stain":
        colour = shades(rng, one_of(rng, [(120, 85, 45), (150, 70, 40), (90, 95, 60)]))
        for dx, dy, radius in _cluster(rng, reach, 6, (0.4, 0.7)):
            canvas.disc(x + dx, y + dy * stretch, radius, colour)
    elif kind == "hole":
        canvas.disc(x, y, reach + 0.007, light)  # its bright rim
        canvas.disc(x, y, reach, (8, 8, 8))
    else:  # a dent: a bright and a dark crescent
        shift = 0.15 * reach
        canvas.disc(x - shift * 0.7, y - shift * 0.7 * stretch, reach - shift, light)
        canvas.disc(x + shift * 0.7, y + shift * 0.7 * stretch, reach - shift, dark)
        canvas.disc(x, y, reach - 1.6 * shift, (135, 134, 132))


def _cluster(rng, reach: float, number: int, radii: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Discs `(dx, dy, radius)` as shares of the width, the first two at opposite ends `2 * reach` apart."""
    turn, discs = rng.uniform(0, 2 * np.pi), []
    for index in range(number):
        radius = reach * rng.uniform(*radii)
        angle = turn + index * np.pi if index < 2 else rng.uniform(0, 2 * np.pi)
        off = (reach - radius) * (1 if index < 2 else rng.uniform(0, 1) ** 0.5)
        discs.append((off * np.cos(angle), off * np.sin(angle), radius))
    return discs


def _part_number(canvas: Canvas, number: int) -> None:
    canvas.box(0.0, 0.92, 0.24, 1.0, (20, 20, 20))
    canvas.text(0.12, 0.96, f"#{number}", 8, (240, 240, 240))


def board(rng) -> Drawing:
    """A circuit board with a grid of parts, some of them missing."""
    columns, rows = int(rng.integers(3, 6)), int(rng.integers(2, 5))
    canvas = Canvas(*size_of(rng), shades(rng, (25, 95, 55), 12))
    places = [(column, row) for row in range(rows) for column in range(columns)]
    missing = int(rng.integers(0, 3))
    empty = {places[index] for index in rng.choice(len(places), missing, replace=False)}
    ink = one_of(rng, [(25, 25, 28), (120, 85, 50), (60, 60, 110)])
    serial = int(rng.integers(1000, 10000))
    for column, row in places:
        x, y = (column + 0.5) / columns, 0.06 + (row + 0.5) / rows * 0.82
        canvas.line([(x, y), (x, 0.97)], (70, 150, 90), 1)
        if (column, row) in empty:
            canvas.box(x - 0.05, y - 0.05, x + 0.05, y + 0.05, None, (200, 200, 190))
        else:
            canvas.box(x - 0.055, y - 0.05, x + 0.055, y + 0.05, ink, (190, 190, 180))
    _part_number(canvas, serial)
    if missing:
        gaps = "; ".join(f"row {row + 1}, column {column + 1}" for column, row in sorted(empty, key=lambda p: p[::-1]))
        second = f"Board {serial}: {count(missing, 'component')} missing ({gaps})."
        label = "missing component"
    else:
        second = f"Board {serial}: every component is in place."
        label = "no defect"
    first = f"Circuit board {serial} with {len(places) - missing} of {columns * rows} components in {rows} rows."
    return Drawing(canvas.done(), [first, second], label, {"missing": missing, "present": len(places) - missing})


def bottle_caps(rng) -> Drawing:
    """Round parts on a belt; some are chipped."""
    total = int(rng.integers(4, 10))
    chipped = int(rng.integers(0, min(3, total)))
    canvas = Canvas(224, 168, noise(rng, 112, 84, (60, 62, 66), 5, 12))
    colour = shades(rng, one_of(rng, [(190, 40, 40), (40, 90, 180), (230, 190, 60), (230, 230, 230)]))
    cells = rng.permutation(12)[:total]
    lot = int(rng.integers(1000, 10000))
    for index, cell in enumerate(cells):
        x, y = (cell % 4 + 0.5) / 4, (cell // 4 + 0.45) / 3.3
        canvas.disc(x, y, 0.085, colour, outline=(30, 30, 30))
        canvas.disc(x, y, 0.05, shades(rng, colour, 30))
        if index < chipped:
            angle = rng.uniform(0, 2 * np.pi)
            canvas.disc(x + 0.075 * np.cos(angle), y + 0.1 * np.sin(angle), 0.035, (60, 62, 66))
    _part_number(canvas, lot)
    verdict = f"{count(chipped, 'cap')} chipped" if chipped else "all of them whole"
    captions = [
        f"Lot {lot}: {count(total, 'cap')} on a conveyor belt, {verdict}.",
        f"Conveyor belt with {total} round caps of lot {lot}; " + ("defects found." if chipped else "no defect found."),
    ]
    label = "chipped cap" if chipped else "no defect"
    return Drawing(canvas.done(), captions, label, {"caps": total, "chipped": chipped})


KINDS = [surface, surface, surface, surface, board, bottle_caps]
