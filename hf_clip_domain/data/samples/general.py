"""Synthetic everyday pictures: coloured shapes, landscapes, streets, people, charts, pages, maps and flags."""

from __future__ import annotations

import numpy as np

from hf_clip_domain.data.samples.canvas import (
    COLOURS,
    Axes,
    Canvas,
    Drawing,
    count,
    noise,
    one_of,
    place_in_words,
    shades,
    size_of,
)

_SHAPES = ("circle", "square", "triangle", "star")


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _shape(canvas: Canvas, kind: str, x: float, y: float, size: float, colour) -> None:
    stretch = canvas.width / canvas.height
    if kind == "circle":
        canvas.disc(x, y, size, colour)
    elif kind == "square":
        canvas.box(x - size, y - size * stretch, x + size, y + size * stretch, colour)
    else:
        corners, inner = (3, 1.0) if kind == "triangle" else (10, 0.42)
        points = []
        for index in range(corners):
            reach = size * 1.25 * (inner if index % 2 and kind == "star" else 1)
            angle = 2 * np.pi * index / corners - np.pi / 2
            points.append((x + reach * np.cos(angle), y + reach * np.sin(angle) * stretch))
        canvas.polygon(points, colour)


def shapes(rng) -> Drawing:
    number = int(rng.integers(1, 5))
    width, height = size_of(rng)
    canvas = Canvas(width, height, shades(rng, one_of(rng, [(240, 240, 240), (225, 235, 245), (250, 243, 225)]), 10))
    cells = rng.permutation(6)[:number]
    words, sizes = [], []
    for cell in cells:
        kind, ink, size = one_of(rng, _SHAPES), one_of(rng, list(COLOURS)), float(rng.uniform(0.05, 0.12))
        x, y = (cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 2
        _shape(canvas, kind, x, y, size, shades(rng, COLOURS[ink], 12))
        words.append(f"{_a(ink)} {kind} in the {place_in_words(x, y)}")
        sizes.append(size)
    listed = ", ".join(words[:-1]) + (" and " if number > 1 else "") + words[-1]
    captions = [f"{listed[0].upper()}{listed[1:]} (widths {', '.join(f'{2 * size:.2f}' for size in sizes)})."]
    return Drawing(canvas.done(), captions, "shapes", {"number": number})


def landscape(rng) -> Drawing:
    width, height = size_of(rng)
    time = one_of(rng, ["day", "sunset", "night"])
    sky = {"day": (150, 200, 240), "sunset": (245, 170, 110), "night": (18, 22, 55)}[time]
    canvas = Canvas(width, height, noise(rng, width // 2, height // 2, sky, 5, 16))
    horizon = float(rng.uniform(0.5, 0.68))
    x = float(rng.uniform(0.12, 0.88))
    canvas.disc(x, 0.2, 0.06, (245, 245, 230) if time == "night" else (255, 225, 90))
    peaks = int(rng.integers(0, 5))
    for index in range(peaks):
        centre, tall = (index + float(rng.uniform(0.3, 0.7))) / peaks, float(rng.uniform(0.2, 0.34))
        colour = shades(rng, (95, 95, 110), 15)
        canvas.polygon([(centre - 0.2, horizon), (centre, horizon - tall), (centre + 0.2, horizon)], colour)
        cap = (centre - 0.04, horizon - tall * 0.8), (centre, horizon - tall), (centre + 0.04, horizon - tall * 0.8)
        canvas.polygon(cap, (245, 245, 250))
    ground = one_of(rng, ["sea", "meadow", "desert"])
    canvas.box(
        0,
        horizon,
        1,
        1,
        shades(rng, {"sea": (40, 100, 160), "meadow": (80, 150, 70), "desert": (215, 180, 120)}[ground]),
    )
    things = int(rng.integers(1, 6))
    for index in range(things):
        px, py = (index + float(rng.uniform(0.25, 0.75))) / things, float(rng.uniform(horizon + 0.1, 0.9))
        if ground == "sea":
            canvas.polygon(
                [(px - 0.05, py), (px + 0.05, py), (px + 0.03, py + 0.04), (px - 0.03, py + 0.04)], (110, 60, 40)
            )
            canvas.polygon([(px, py - 0.01), (px, py - 0.12), (px + 0.045, py - 0.01)], (250, 250, 245))
        elif ground == "meadow":
            canvas.box(px - 0.008, py - 0.06, px + 0.008, py + 0.03, (100, 70, 40))
            canvas.disc(px, py - 0.09, 0.04, shades(rng, (40, 110, 50)))
        else:
            canvas.box(px - 0.012, py - 0.12, px + 0.012, py + 0.02, (60, 130, 70))
            canvas.line([(px - 0.035, py - 0.08), (px - 0.035, py - 0.05), (px, py - 0.05)], (60, 130, 70), 3)
    noun = {"sea": "sailing boat", "meadow": "tree", "desert": "cactus"}[ground]
    plural = "cacti" if noun == "cactus" else None
    body = "moon" if time == "night" else "sun"
    side = "left" if x < 0.4 else "right" if x > 0.6 else "middle"
    hills = f"{count(peaks, 'snowy mountain')} behind" if peaks else "no mountains"
    captions = [
        f"A {ground} landscape at {time} with {count(things, noun, plural)}, {hills}, the {body} at {x:.2f} of the width.",
        f"{count(things, noun, plural).capitalize()} under a {body} on the {side}, horizon at {horizon:.3f}; a drawing of "
        f"a {ground} at {time}.",
    ]
    return Drawing(canvas.done(), captions, "landscape", {"ground": ground, "things": things})


def street(rng) -> Drawing:
    width, height = size_of(rng)
    canvas = Canvas(width, height, shades(rng, (190, 215, 235), 15))
    houses, words = int(rng.integers(2, 5)), []
    for index in range(houses):
        ink, floors = one_of(rng, ["red", "yellow", "blue", "green", "pink", "grey", "orange"]), int(rng.integers(1, 5))
        left, right = index / houses + 0.01, (index + 1) / houses - 0.01
        top = 0.78 - 0.13 * floors
        canvas.box(left, top, right, 0.8, shades(rng, COLOURS[ink]), (60, 60, 60))
        canvas.polygon([(left, top), ((left + right) / 2, top - 0.09), (right, top)], (120, 60, 50))
        for floor in range(floors):
            for window in range(2):
                wx, wy = left + (right - left) * (0.3 + 0.4 * window), top + 0.06 + 0.13 * floor
                canvas.box(wx - 0.015, wy - 0.03, wx + 0.015, wy + 0.03, (235, 240, 250), (70, 70, 70))
        words.append(f"{ink} with {count(floors, 'floor')}")
    canvas.box(0, 0.8, 1, 1, (90, 90, 95))
    car, x = one_of(rng, ["red", "blue", "yellow", "green", "black"]), float(rng.uniform(0.15, 0.85))
    canvas.box(x - 0.08, 0.83, x + 0.08, 0.89, COLOURS[car])
    canvas.box(x - 0.045, 0.78, x + 0.045, 0.84, COLOURS[car])
    for wheel in (-0.045, 0.045):
        canvas.disc(x + wheel, 0.9, 0.018, (20, 20, 20))
    captions = [
        f"A street with {count(houses, 'house')}, from the left {', '.join(words)}, and a {car} car at {x:.2f} of the width.",
    ]
    return Drawing(canvas.done(), captions, "street", {"houses": houses})


def people(rng) -> Drawing:
    number = int(rng.integers(1, 8))
    canvas = Canvas(224, 168, shades(rng, (238, 228, 212), 14))
    canvas.box(0, 0.82, 1, 1, shades(rng, (170, 150, 125)))
    inks, hats = [], 0
    for index in range(number):
        x, ink = (index + 0.5) / number, one_of(rng, list(COLOURS))
        tall = float(rng.uniform(0.85, 1.1))
        skin = one_of(rng, [(245, 210, 180), (200, 150, 110), (120, 80, 55)])
        feet = 0.86
        neck = feet - 0.42 * tall
        canvas.line([(x - 0.02, feet), (x, feet - 0.2 * tall), (x + 0.02, feet)], (50, 50, 70), 3)
        canvas.polygon(
            [(x - 0.035, neck), (x + 0.035, neck), (x + 0.028, feet - 0.18), (x - 0.028, feet - 0.18)], COLOURS[ink]
        )
        canvas.disc(x, neck - 0.06, 0.03, skin)
        if rng.random() < 0.35:
            canvas.box(x - 0.035, neck - 0.12, x + 0.035, neck - 0.095, (40, 40, 40))
            canvas.box(x - 0.02, neck - 0.17, x + 0.02, neck - 0.1, (40, 40, 40))
            hats += 1
        inks.append(ink)
    captions = [
        f"A drawing of {count(number, 'person', 'people')} standing in a row, dressed in {', '.join(inks)}; "
        f"{count(hats, 'wears a hat', 'wear hats') if hats else 'nobody wears a hat'}.",
    ]
    return Drawing(canvas.done(), captions, "people", {"people": number, "hats": hats})


_THEMES = {
    "population by region": ("North", "South", "East", "West"),
    "votes by party": ("Liberal", "Labour", "Green", "Union"),
    "sales by quarter": ("Q1", "Q2", "Q3", "Q4"),
    "income by age group": ("18-30", "31-45", "46-60", "over 60"),
    "students by school": ("primary", "middle", "high", "college"),
}


def chart(rng) -> Drawing:
    theme = one_of(rng, list(_THEMES))
    names, ink = _THEMES[theme], one_of(rng, [name for name in COLOURS if name != "yellow"])
    values = rng.choice(np.arange(5, 96), 4, replace=False)
    canvas = Canvas(224, 168)
    axes = Axes(canvas, (-0.6, 3.6), (0, 100), "", theme)
    canvas.box(axes.left, 0.835, 1, 1, (255, 255, 255))
    axes.bars(range(4), values, 0.6, COLOURS[ink])
    for index, name in enumerate(names):
        canvas.text(axes.place(index, 0)[0], 0.89, name, 9)
    listed = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    captions = [
        f"Bar chart of {theme} in percent: {listed}; {ink} bars.",
        f"{ink.capitalize()} bar graph showing {theme}: {names[int(values.argmax())]} is highest with {values.max()} and "
        f"{names[int(values.argmin())]} lowest with {values.min()} percent.",
    ]
    return Drawing(canvas.done(), captions, "bar chart", {"names": names, "values": values.tolist()})


def pie(rng) -> Drawing:
    theme = one_of(rng, list(_THEMES))
    names, cuts = _THEMES[theme], np.sort(rng.choice(np.arange(8, 93), 3, replace=False))
    shares = np.diff([0, *cuts, 100])
    inks = rng.choice(list(COLOURS), 4, replace=False)
    canvas = Canvas(208, 192)
    start = 0.0
    for share, ink in zip(shares, inks, strict=True):
        box = (*canvas.at(0.18, 0.08), *canvas.at(0.82, 0.8))
        canvas.pen.pieslice(
            box, start * 3.6 - 90, (start + share) * 3.6 - 90, fill=COLOURS[ink], outline=(255, 255, 255)
        )
        start += share
    canvas.text(0.5, 0.9, theme, 12)
    listed = ", ".join(f"{name} {share}% in {ink}" for name, share, ink in zip(names, shares, inks, strict=True))
    captions = [
        f"Pie chart of {theme}: {listed}.",
        f"The largest slice of the pie chart of {theme}, {inks[int(shares.argmax())]}, stands for "
        f"{names[int(shares.argmax())]} with {shares.max()}%; the others are {', '.join(map(str, sorted(shares)[:3]))}%.",
    ]
    return Drawing(canvas.done(), captions, "pie chart", {"shares": shares.tolist()})


def trend(rng) -> Drawing:
    first = int(rng.integers(1880, 1990))
    years = np.arange(first, first + 31, 2)
    slope = float(rng.uniform(-2.5, 2.5))
    values = (50 + slope * np.arange(len(years)) + rng.normal(size=len(years)) * 3).clip(2, 98)
    ink = one_of(rng, ["red", "blue", "green", "black", "purple"])
    subject = one_of(
        rng, ["immigration", "unemployment", "life expectancy", "voter turnout", "crop harvest", "union members"]
    )
    canvas = Canvas(240, 160)
    axes = Axes(canvas, (first, first + 30), (0, 100), "year", subject)
    axes.curve(years, values, COLOURS[ink])
    change = values[-1] - values[0]
    word = "rises" if change > 8 else "falls" if change < -8 else "stays about level"
    captions = [
        f"Line graph of {subject} from {first} to {first + 30}: the {ink} line {word} from {values[0]:.0f} to "
        f"{values[-1]:.0f}.",
    ]
    return Drawing(canvas.done(), captions, "line graph", {"change": float(change)})


def flag(rng) -> Drawing:
    stripes, upright = int(rng.integers(2, 6)), bool(rng.integers(2))
    inks = rng.choice(list(COLOURS), stripes, replace=False)  # two stripes of one colour would look like one
    canvas = Canvas(216, 144, (255, 255, 255))
    for index, ink in enumerate(inks):
        low, high = index / stripes, (index + 1) / stripes
        canvas.box(*((low, 0, high, 1) if upright else (0, low, 1, high)), COLOURS[ink])
    emblem, x = one_of(rng, _SHAPES), float(rng.uniform(0.2, 0.8))
    size = float(rng.uniform(0.07, 0.14))
    _shape(canvas, emblem, x, 0.5, size, (250, 250, 250))
    direction = "vertical" if upright else "horizontal"
    captions = [
        f"A flag of {count(stripes, f'{direction} stripe')} in {', '.join(inks)} with a white {emblem} at {x:.2f} of its "
        f"width, {2 * size:.2f} wide.",
    ]
    return Drawing(canvas.done(), captions, "flag", {"stripes": stripes})


def page(rng) -> Drawing:
    columns, year = int(rng.integers(1, 4)), int(rng.integers(1790, 1970))
    title = one_of(
        rng, ["The Daily News", "Gazette", "Evening Post", "The Tribune", "A Proclamation", "The Constitution"]
    )
    canvas = Canvas(168, 216, shades(rng, (240, 228, 200), 12))
    canvas.text(0.5, 0.08, title, 15)
    canvas.text(0.5, 0.15, str(year), 9)
    canvas.line([(0.06, 0.19), (0.94, 0.19)], (60, 50, 40))
    picture = bool(rng.integers(2))
    lines = int(rng.integers(18, 34))
    for column in range(columns):
        left, right = 0.07 + column * 0.88 / columns, 0.03 + (column + 1) * 0.88 / columns
        for line in range(lines):
            y = 0.23 + 0.72 * line / lines
            if picture and column == 0 and y < 0.5:
                continue
            canvas.line([(left, y), (right - float(rng.uniform(0, 0.05)), y)], (80, 70, 60), 1)
    if picture:
        canvas.box(0.07, 0.24, 0.03 + 0.88 / columns, 0.48, (120, 110, 95), (50, 40, 30))
    illustration = "with a picture" if picture else "without a picture"
    captions = [
        f"An old printed page titled {title}, dated {year}, in {count(columns, 'column')} of {lines} lines {illustration}.",
    ]
    return Drawing(canvas.done(), captions, "printed page", {"columns": columns, "year": year})


def island_map(rng) -> Drawing:
    canvas = Canvas(224, 176, shades(rng, (165, 205, 230), 12))
    regions = int(rng.integers(2, 5))
    inks = list(rng.choice(["green", "yellow", "orange", "pink", "purple", "brown"], regions, replace=False))
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 0.3 + 0.05 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.03 * np.sin(5 * angles + rng.uniform(0, 6))
    coast = [(0.5 + r * np.cos(a), 0.5 + r * 1.15 * np.sin(a)) for r, a in zip(radius, angles, strict=True)]
    turn = int(rng.integers(40))
    borders = [(turn + index * 40 // regions) % 40 for index in range(regions + 1)]
    for index, ink in enumerate(inks):
        span = [(borders[index] + step) % 40 for step in range(40 // regions + 2)]
        canvas.polygon([(0.5, 0.5), *[coast[step] for step in span]], COLOURS[ink], (70, 70, 70))
    cities = int(rng.integers(1, 6))
    for _ in range(cities):
        angle, reach = float(rng.uniform(0, 6.28)), float(rng.uniform(0.05, 0.2))
        canvas.disc(0.5 + reach * np.cos(angle), 0.5 + reach * np.sin(angle), 0.014, (20, 20, 20))
    canvas.arrow((0.9, 0.25), (0.9, 0.1), (40, 40, 40))
    canvas.text(0.9, 0.06, "N", 10)
    scale = int(rng.integers(5, 500))
    canvas.line([(0.06, 0.94), (0.26, 0.94)], (30, 30, 30), 2)
    canvas.text(0.16, 0.89, f"{scale} km", 9)
    captions = [
        f"Map of an island divided into {regions} regions coloured {', '.join(inks)}, with {count(cities, 'city', 'cities')} "
        f"marked, a north arrow and a scale bar of {scale} km.",
    ]
    return Drawing(canvas.done(), captions, "map", {"regions": regions})


KINDS = [shapes, landscape, street, people, chart, pie, trend, flag, page, island_map]
