"""Synthetic medical pictures: phantoms, cells, traces and schematic organs. None shows a patient."""

from __future__ import annotations

import numpy as np

from hf_clip_domain.data.samples.canvas import Axes, Canvas, Drawing, count, noise, one_of, shades

# Radiological convention: the patient's right is on the left of the picture.
_SIDES = {"right": -1, "left": 1}


def ct_phantom(rng) -> Drawing:
    canvas = Canvas(208, 208, (0, 0, 0))
    body = int(rng.integers(85, 110))
    canvas.disc(0.5, 0.5, 0.44, (225, 225, 225), ry=0.36)
    canvas.disc(0.5, 0.5, 0.43, (body,) * 3, ry=0.35)
    canvas.disc(0.5, 0.74, 0.06, (235, 235, 235))
    canvas.disc(0.36, 0.46, 0.15, (body + 28,) * 3, ry=0.17)  # the liver, on the patient's right
    canvas.disc(0.68, 0.5, 0.08, (body + 18,) * 3, ry=0.12)
    side = one_of(rng, list(_SIDES))
    dense = bool(rng.integers(2))
    size = float(rng.uniform(0.02, 0.06))
    y = float(rng.uniform(0.38, 0.58))
    canvas.disc(0.5 + _SIDES[side] * 0.17, y, size, (225,) * 3 if dense else (45,) * 3)
    millimetres = round(size * 2 * 400)
    word = "hyperdense" if dense else "hypodense"
    scan = int(rng.integers(100, 1000))
    captions = [
        f"Axial CT phantom {scan}: a round {word} lesion of {millimetres} mm on the patient's {side} side.",
        f"Cross-section of an abdominal phantom (slice {scan}) with a {millimetres} mm {word} mass, {side} side.",
    ]
    canvas.text(0.9, 0.96, str(scan), 8, (200, 200, 200))
    return Drawing(canvas.done(blur=0.8), captions, "CT phantom", {"side": side, "millimetres": millimetres})


def chest_phantom(rng) -> Drawing:
    canvas = Canvas(200, 216, noise(rng, 100, 108, (135, 135, 135), 6, 8))
    for sign in (-1, 1):
        canvas.disc(0.5 + sign * 0.21, 0.48, 0.16, (45, 45, 45), ry=0.32)
    for rib in range(6):
        y = 0.22 + rib * 0.09
        for sign in (-1, 1):
            canvas.line(
                [(0.5 + sign * 0.06, y), (0.5 + sign * 0.25, y + 0.03), (0.5 + sign * 0.38, y + 0.09)], (95,) * 3, 2
            )
    heart = float(rng.uniform(0.1, 0.2))
    canvas.disc(0.5 + heart / 2.5, 0.62, heart, (205, 205, 205), ry=heart * 0.9)
    canvas.box(0.47, 0.05, 0.53, 0.95, (190, 190, 190))
    ratio = round(2 * heart / 0.74, 2)
    size_words = "enlarged" if ratio > 0.45 else "of normal size"
    side = one_of(rng, list(_SIDES))
    finding = one_of(rng, ["nodule", "effusion", "none"])
    film = int(rng.integers(100, 1000))
    if finding == "nodule":
        # Above the heart, which would hide it.
        canvas.disc(0.5 + _SIDES[side] * 0.23, float(rng.uniform(0.27, 0.4)), 0.025, (200,) * 3)
        words = f"a round nodule in the {side} lung"
    elif finding == "effusion":
        canvas.disc(0.5 + _SIDES[side] * 0.22, 0.78, 0.16, (185,) * 3, ry=0.08)
        words = f"a pleural effusion at the base of the {side} lung"
    else:
        words = "clear lungs without nodule or effusion"
    canvas.text(0.9, 0.97, str(film), 8, (240, 240, 240))
    captions = [
        f"Chest radiograph phantom {film}, frontal view: {words}; the heart is {size_words} (cardiothoracic ratio "
        f"{ratio}).",
        f"Frontal X-ray of a chest phantom, film {film}, with {words}.",
    ]
    return Drawing(canvas.done(blur=1.2), captions, "chest phantom", {"finding": finding, "side": side, "ratio": ratio})


def brain_phantom(rng) -> Drawing:
    canvas = Canvas(192, 208, (4, 4, 4))
    canvas.disc(0.5, 0.5, 0.4, (150, 150, 150), ry=0.45)
    canvas.disc(0.5, 0.5, 0.37, (90, 90, 90), ry=0.42)
    canvas.disc(0.5, 0.5, 0.3, (120, 120, 120), ry=0.34)
    width = float(rng.uniform(0.03, 0.07))
    for sign in (-1, 1):
        canvas.disc(0.5 + sign * 0.07, 0.47, width, (20, 20, 20), ry=0.12)
    canvas.line([(0.5, 0.1), (0.5, 0.36)], (60, 60, 60), 1)
    ventricles = "enlarged ventricles" if width > 0.05 else "narrow ventricles"
    side = one_of(rng, list(_SIDES))
    lobe, y = one_of(rng, [("frontal", 0.25), ("temporal", 0.55), ("occipital", 0.75)])
    size = float(rng.uniform(0.02, 0.06))
    bright = bool(rng.integers(2))
    canvas.disc(0.5 + _SIDES[side] * 0.2, y, size, (235,) * 3 if bright else (30,) * 3)
    millimetres = round(size * 2 * 180, 1)
    captions = [
        f"Axial MRI phantom of a brain with {ventricles} and a {'bright' if bright else 'dark'} lesion of "
        f"{millimetres} mm in the {side} {lobe} lobe (ventricle width {width * 180:.1f} mm).",
        f"Brain phantom: {side} {lobe} lesion, {'hyperintense' if bright else 'hypointense'}, {millimetres} mm, with "
        f"ventricles of {width * 180:.1f} mm.",
    ]
    return Drawing(canvas.done(blur=1), captions, "brain phantom", {"side": side, "lobe": lobe})


def ultrasound(rng) -> Drawing:
    speckle = noise(rng, 224, 168, (85, 85, 85), 34, 2)
    canvas = Canvas(224, 168, speckle)
    canvas.polygon([(0, 0), (0.42, 0), (0, 1)], (0, 0, 0))
    canvas.polygon([(1, 0), (0.58, 0), (1, 1)], (0, 0, 0))
    cysts = int(rng.integers(1, 4))
    depths = []
    for index in range(cysts):
        y = 0.35 + 0.5 * (index + float(rng.uniform(0.2, 0.8))) / cysts
        x = 0.5 + float(rng.uniform(-0.2, 0.2)) * y
        size = float(rng.uniform(0.03, 0.07))
        canvas.disc(x, y, size, (8, 8, 8), outline=(190, 190, 190))
        depths.append(round(y * 12, 1))
    captions = [
        f"Ultrasound phantom with {count(cysts, 'dark cyst')} in bright speckle, at depths of "
        f"{', '.join(map(str, depths))} cm.",
    ]
    return Drawing(canvas.done(blur=0.6), captions, "ultrasound", {"cysts": cysts})


def blood_smear(rng) -> Drawing:
    red, white = int(rng.integers(12, 40)), int(rng.integers(0, 5))
    canvas = Canvas(208, 208, shades(rng, (245, 228, 222), 8))
    spots = _apart(rng, red + white, 0.1)
    for x, y in spots[:red]:
        canvas.disc(x, y, 0.038, shades(rng, (215, 125, 120)))
        canvas.disc(x, y, 0.015, (238, 190, 182))
    for x, y in spots[red:]:
        canvas.disc(x, y, 0.06, (225, 215, 235), outline=(150, 120, 180))
        for _ in range(int(rng.integers(2, 5))):
            dx, dy = rng.normal(scale=0.014, size=2)
            canvas.disc(x + dx, y + dy, 0.024, shades(rng, (95, 50, 140)))
    red, white = min(red, len(spots)), max(0, len(spots) - red)
    field = int(rng.integers(100, 1000))
    canvas.text(0.92, 0.97, str(field), 8)
    captions = [
        f"Blood smear, field {field}: {red} red cells and {count(white, 'white cell')} with purple nuclei (drawing).",
        f"Drawn micrograph {field} of stained blood: pink disc-shaped erythrocytes"
        + (f" and {count(white, 'leukocyte')}." if white else ", no leukocyte in the field."),
    ]
    return Drawing(canvas.done(), captions, "blood smear", {"red": red, "white": white})


def bacteria(rng) -> Drawing:
    gram = one_of(rng, ["positive", "negative"])
    shape = one_of(rng, ["cocci", "bacilli", "spirilla"])
    number = int(rng.integers(10, 45))
    canvas = Canvas(208, 208, shades(rng, (248, 240, 235), 6))
    base = (95, 50, 150) if gram == "positive" else (215, 80, 120)
    spots = _apart(rng, number, 0.08)
    for x, y in spots:
        angle, colour = rng.uniform(0, np.pi), shades(rng, base)
        if shape == "cocci":
            canvas.disc(x, y, 0.02, colour)
        elif shape == "bacilli":
            dx, dy = 0.04 * np.cos(angle), 0.04 * np.sin(angle)
            canvas.line([(x - dx, y - dy), (x + dx, y + dy)], colour, 5)
        else:
            along = np.linspace(-0.05, 0.05, 16)
            wave = 0.012 * np.sin(along * 200)
            canvas.line(
                [(x + a * np.cos(angle) - w * np.sin(angle), y + a * np.sin(angle) + w * np.cos(angle))
                 for a, w in zip(along, wave, strict=True)],
                colour,
                2,
            )  # fmt: skip
    words = {"cocci": "round", "bacilli": "rod-shaped", "spirilla": "spiral"}[shape]
    tint = "purple" if gram == "positive" else "pink"
    slide = int(rng.integers(100, 1000))
    canvas.text(0.92, 0.97, str(slide), 8)
    captions = [
        f"Gram stain, slide {slide}: {len(spots)} {tint} {words} bacteria, Gram-{gram} {shape} (drawing).",
        f"Drawn micrograph {slide} of {words} bacteria that stain {tint}: Gram-{gram} {shape}.",
    ]
    return Drawing(canvas.done(), captions, "bacteria", {"gram": gram, "shape": shape, "number": len(spots)})


def electrocardiogram(rng) -> Drawing:
    rate, seconds = int(rng.integers(40, 160)), 4.0
    canvas = Canvas(240, 160, (255, 246, 244))
    for step in range(25):
        canvas.line([(step / 24, 0), (step / 24, 1)], (245, 200, 200), 0.5)
        canvas.line([(0, step / 16), (1, step / 16)], (245, 200, 200), 0.5)
    time = np.linspace(0, seconds, 900)
    irregular = rng.random() < 0.3
    starts, moment = [], float(rng.uniform(0, 0.4))
    while moment < seconds:
        starts.append(moment)
        moment += 60 / rate * (float(rng.uniform(0.65, 1.35)) if irregular else 1)
    height = float(rng.uniform(0.22, 0.4))
    trace = np.zeros_like(time)
    for start in starts:
        for centre, width, size in (
            (-0.16, 0.025, 0.12),
            (-0.02, 0.01, -0.1),
            (0, 0.011, 1),
            (0.03, 0.012, -0.2),
            (0.2, 0.04, 0.25),
        ):
            trace += size * np.exp(-(((time - start - centre) / width) ** 2) / 2)
    canvas.line(list(zip(time / seconds, 0.6 - height * trace, strict=True)), (20, 20, 20), 1.3)
    rhythm = "irregular" if irregular else "regular"
    word = "bradycardia" if rate < 60 else "tachycardia" if rate > 100 else "a normal rate"
    captions = [
        f"Electrocardiogram trace, drawn: {rhythm} rhythm at about {rate} beats per minute, {word}, {len(starts)} QRS "
        f"complexes in {seconds:.0f} seconds, R wave {height * 2.5:.2f} mV.",
    ]
    return Drawing(canvas.done(), captions, "electrocardiogram", {"rate": rate, "beats": len(starts)})


def growth_curve(rng) -> Drawing:
    inks = rng.choice(["red", "blue", "green", "black"], 2, replace=False)
    colours = {"red": (205, 45, 45), "blue": (45, 95, 200), "green": (50, 150, 70), "black": (30, 30, 30)}
    rates = np.round(rng.uniform(0.3, 1.6, 2), 2)
    canvas = Canvas(224, 168)
    hours = np.linspace(0, 12, 60)
    axes = Axes(canvas, (0, 12), (0, 1.1), "time (h)", "cells")
    for ink, rate in zip(inks, rates, strict=True):
        axes.curve(hours, 1 / (1 + np.exp(-rate * (hours - 6))), colours[ink])
    faster = inks[int(np.argmax(rates))]
    captions = [
        f"Growth of two bacterial cultures over 12 hours: the {faster} one grows faster (rates {rates[0]} in {inks[0]} "
        f"and {rates[1]} in {inks[1]} per hour).",
    ]
    return Drawing(canvas.done(), captions, "growth curve", {"faster": str(faster)})


def neuron(rng) -> Drawing:
    dendrites, stain = int(rng.integers(4, 9)), one_of(rng, ["purple", "brown", "green"])
    colour = shades(rng, {"purple": (120, 70, 160), "brown": (130, 85, 50), "green": (60, 140, 80)}[stain])
    canvas = Canvas(224, 160, (250, 247, 240))
    canvas.line([(0.3, 0.5), (0.62, 0.52), (0.9, 0.45)], colour, 4)
    nodes = int(rng.integers(2, 6))
    for index in range(nodes):
        x = 0.42 + 0.4 * index / max(1, nodes - 1)
        canvas.disc(x, 0.51 - 0.04 * max(0, x - 0.6) / 0.3, 0.035, (235, 205, 120), ry=0.045)
    for angle in np.linspace(0.6, 5.7, dendrites):
        tip = (0.25 + 0.2 * np.cos(angle), 0.5 + 0.32 * np.sin(angle))
        canvas.line([(0.25, 0.5), tip], colour, 2.5)
        for turn in (-0.35, 0.35):
            canvas.line(
                [tip, (tip[0] + 0.06 * np.cos(angle + turn), tip[1] + 0.09 * np.sin(angle + turn))], colour, 1.5
            )
    canvas.disc(0.25, 0.5, 0.07, colour)
    canvas.disc(0.25, 0.5, 0.028, (250, 235, 235))
    plate = int(rng.integers(100, 1000))
    canvas.text(0.93, 0.95, str(plate), 8)
    captions = [
        f"Diagram {plate} of a neuron: a {stain} cell body with nucleus and {count(dendrites, 'dendrite')} on the left, an "
        f"axon with {count(nodes, 'myelin sheath')} to the right.",
        f"Schematic nerve cell, plate {plate}: {dendrites} branching dendrites and a long myelinated axon.",
    ]
    return Drawing(canvas.done(), captions, "neuron", {"dendrites": dendrites})


def heart(rng) -> Drawing:
    chambers = {"right atrium": (0.33, 0.36), "left atrium": (0.65, 0.36), "right ventricle": (0.38, 0.65)}
    chambers["left ventricle"] = (0.62, 0.65)
    highlighted = one_of(rng, list(chambers))
    canvas = Canvas(192, 208, shades(rng, (250, 245, 240), 5))
    canvas.polygon(
        [(0.15, 0.35), (0.3, 0.18), (0.7, 0.18), (0.86, 0.35), (0.8, 0.65), (0.52, 0.95), (0.2, 0.65)], (190, 80, 80)
    )
    for name, (x, y) in chambers.items():
        blue = name.startswith("right")
        colour = (240, 215, 90) if name == highlighted else (110, 120, 200) if blue else (225, 120, 120)
        canvas.disc(x, y, 0.12, colour, ry=0.13 if "ventricle" in name else 0.1, outline=(120, 40, 40))
    plate = int(rng.integers(100, 1000))
    canvas.text(0.93, 0.95, str(plate), 8)
    captions = [
        f"Schematic heart with four chambers, plate {plate}: the {highlighted} is highlighted in yellow.",
        f"Diagram {plate} of the human heart; the yellow chamber is the {highlighted}.",
    ]
    return Drawing(canvas.done(), captions, "heart", {"chamber": highlighted})


def _apart(rng, number: int, distance: float) -> list[tuple[float, float]]:
    """Up to `number` random places, no two closer than `distance`."""
    places: list[tuple[float, float]] = []
    for _ in range(number * 12):
        spot = tuple(rng.uniform(0.07, 0.93, 2))
        if all(np.hypot(spot[0] - x, spot[1] - y) > distance for x, y in places):
            places.append(spot)
        if len(places) == number:
            break
    return places


KINDS = [
    ct_phantom,
    chest_phantom,
    brain_phantom,
    ultrasound,
    blood_smear,
    bacteria,
    electrocardiogram,
    growth_curve,
    neuron,
    heart,
]
