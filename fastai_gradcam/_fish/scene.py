"""Lays a drawn fish on a tray, with its mask, its light and, if asked, its tag (numpy and Pillow only)."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from .drawing import SPECIES, draw_fish, noise, smoothstep

# Everything is composed at twice the size and then box-averaged, so that a tag's edge reaches no pixel beyond its own.
SS = 2

CLOTHS = (
    (232, 230, 222),
    (196, 206, 214),
    (214, 206, 190),
    (120, 128, 136),
    (64, 72, 86),
    (150, 166, 178),
    (176, 186, 170),
    (206, 198, 208),
    (148, 138, 126),
)
WOODS = ((150, 128, 106), (112, 94, 80), (186, 168, 144), (84, 72, 64))


def surface(rng: Generator, n: int) -> np.ndarray:
    "A tray, cloth, board, slate or bed of ice that fills `n` × `n` pixels, float RGB."
    kind = rng.choice(["steel", "plastic", "gingham", "striped", "linen", "wood", "slate", "ice"])
    a = rng.uniform(0, np.pi)
    g = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    x = g[None] * np.cos(a) + g[:, None] * np.sin(a)
    y = g[:, None] * np.cos(a) - g[None] * np.sin(a)
    base = np.array(
        WOODS[rng.integers(len(WOODS))] if kind == "wood" else CLOTHS[rng.integers(len(CLOTHS))], np.float32
    )
    base = np.clip(base + rng.normal(0, 6, 3) + rng.normal(0, 10), 12, 245).astype(np.float32)
    shade = np.ones((n, n), np.float32)
    if kind == "steel":
        base = np.full(3, rng.uniform(120, 200), np.float32) + np.array([-4, 0, 5], np.float32)
        streak = rng.normal(0, 1, 512).astype(np.float32)
        shade += 0.04 * streak[((y + 0.75) * 330).astype(int)] + 0.12 * noise(rng, (n, n), (2, 2))
    elif kind == "plastic":
        shade += 0.05 * noise(rng, (n, n), (3, 3))
        if rng.random() < 0.6:
            shade += 0.1 * np.tanh(4 * np.sin(y * rng.uniform(35, 70)) - 2)
    elif kind in ("gingham", "striped"):
        f = rng.uniform(25, 60)
        stripe = smoothstep(np.sin(y * f), -0.08, 0.08) + (
            smoothstep(np.sin(x * f), -0.08, 0.08) if kind == "gingham" else 0
        )
        pale = base * 0.25 + 182
        weave = 1 + 0.05 * np.sin(x * 700) * np.sin(y * 700)
        share = stripe / (2 if kind == "gingham" else 1)
        return (pale + (base - pale) * share[..., None]) * (weave + 0.05 * noise(rng, (n, n), (4, 4)))[..., None]
    elif kind == "linen":
        shade += 0.07 * np.sin(x * 620) * np.sin(y * 620) + 0.1 * noise(rng, (n, n), (5, 5))
    elif kind == "wood":
        grain = noise(rng, (n, n), (6, 6))
        plank = y * rng.uniform(2.5, 5)
        shade += 0.09 * np.sin(y * 130 + 5 * grain + 3 * x) + 0.1 * np.sin(np.floor(plank) * 12.9)
        shade -= 0.5 * (np.abs(plank - np.round(plank)) < 0.015)
    elif kind == "slate":
        base = np.full(3, rng.uniform(45, 85), np.float32) + np.array([-3, 0, 6], np.float32)
        shade += 0.14 * noise(rng, (n, n), (6, 6)) + 0.12 * noise(rng, (n, n), (30, 30))
    else:
        base = np.array([196, 214, 228], np.float32)
        m = n // 4
        at = rng.uniform(-0.05, 1.05, (110, 2)).astype(np.float32)
        q = (np.arange(m, dtype=np.float32) + 0.5) / m
        d = (q[:, None, None] - at[:, 0]) ** 2 + (q[None, :, None] - at[:, 1]) ** 2
        near = np.exp(-900 * np.minimum(d - d.min(-1, keepdims=True), 0.01))
        facet = near @ rng.uniform(-1, 1, 110).astype(np.float32) / near.sum(-1) + 6 * np.sqrt(d.min(-1)) - 0.3
        shade += 0.16 * np.asarray(Image.fromarray(facet.astype(np.float32)).resize((n, n), Image.Resampling.BICUBIC))
    return base * shade[..., None]


def background(rng: Generator, n: int) -> np.ndarray:
    "A surface, often with the rim of a tray and the table beyond it."
    inner = surface(rng, n)
    if rng.random() < 0.45:
        return inner
    outer = surface(rng, n)
    g = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    a = rng.normal(0, 0.25)
    x = g[None] * np.cos(a) + g[:, None] * np.sin(a) - rng.uniform(-0.2, 0.2)
    y = g[:, None] * np.cos(a) - g[None] * np.sin(a) - rng.uniform(-0.2, 0.2)
    qx, qy = np.abs(x) - rng.uniform(0.42, 0.6), np.abs(y) - rng.uniform(0.36, 0.55)
    d = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - 0.05
    rim = rng.uniform(0.015, 0.035)
    outer *= (1 - 0.5 * np.exp(-np.maximum(d - rim, 0) / 0.03))[..., None]
    inner *= (1 - 0.3 * np.exp(np.minimum(d, 0) / 0.035))[..., None]
    edge = np.clip(inner.mean((0, 1)) * rng.uniform(1.0, 1.35), 0, 250)
    picture = inner + (outer - inner) * np.clip((d - rim) * n + 0.5, 0, 1)[..., None]
    bevel = (1 + 0.2 * np.cos(d / rim * np.pi))[..., None]
    return picture + (edge * bevel - picture) * np.clip(np.minimum(d, rim - d) * n + 0.5, 0, 1)[..., None]


def trinket(rng: Generator, m: int) -> Image.Image:
    "A pebble, ice cube, lemon slice, bay leaf or cherry tomato in `m` × `m` pixels, RGBA."
    kind = rng.choice(["pebble", "ice", "lemon", "leaf", "tomato"])
    g = np.linspace(-1.15, 1.15, m, dtype=np.float32)
    a = rng.uniform(0, 2 * np.pi)
    x = g[None] * np.cos(a) + g[:, None] * np.sin(a)
    y = g[:, None] * np.cos(a) - g[None] * np.sin(a)
    r, soft = np.hypot(x, y), m / 2.3
    light = -(g[None] + g[:, None]) * 0.35
    alpha = np.clip((1 - r) * soft, 0, 1)
    if kind == "pebble":
        stretch = rng.uniform(1.1, 1.7)
        r = np.hypot(x, y * stretch)
        base = np.array([1.0, 0.97, 0.92]) * rng.uniform(80, 190)
        colour = base * (1 + light - 0.3 * r**3 + 0.08 * noise(rng, (m, m), (5, 5)))[..., None]
        alpha = np.clip((1 - r) * soft / stretch, 0, 1)
    elif kind == "ice":
        box = (np.abs(x) ** 6 + np.abs(y) ** 6) ** (1 / 6) / 0.78
        colour = np.array([222, 238, 248]) * (0.92 + 0.3 * light + 0.14 * noise(rng, (m, m), (3, 3)))[..., None]
        alpha = np.clip((1 - box) * soft, 0, 1) * (0.4 + 0.5 * smoothstep(box, 0.6, 0.95))
    elif kind == "lemon":
        wedge = np.abs(np.sin(np.arctan2(y, x) * 4))
        flesh = smoothstep(wedge * r, 0.05, 0.16) * (r < 0.8)
        colour = np.array([250, 240, 190]) + flesh[..., None] * (np.array([246, 206, 70]) - np.array([250, 240, 190]))
        colour = np.where((r > 0.9)[..., None], np.array([240, 190, 30]), colour)
    elif kind == "leaf":
        reach = 0.42 * np.cos(np.clip(x, -1, 1) * np.pi / 2) ** 0.8
        vein = np.exp(-((y / 0.03) ** 2)) + 0.5 * np.exp(-((np.sin((x - np.abs(y)) * 14) / 0.25) ** 2))
        colour = np.array([66, 116, 56]) * (1 + light * 0.6 + 0.25 * vein)[..., None]
        alpha = np.clip((reach - np.abs(y)) * soft, 0, 1) * (np.abs(x) < 1)
    else:
        colour = np.array([206, 50, 36]) * (1 + light - 0.25 * r**3)[..., None]
        colour = colour + (150 * np.exp(-((g[None] + 0.35) ** 2 + (g[:, None] + 0.35) ** 2) / 0.03))[..., None]
    return Image.fromarray(np.clip(np.dstack([colour, alpha * 255]), 0, 255).astype(np.uint8), "RGBA")


def lay(picture: Image.Image, thing: Image.Image, at: tuple[int, int], shadow: tuple[int, int], dark: float) -> None:
    "Paste `thing` at `at`, over a soft shadow moved by `shadow`."
    pad = 8 * SS
    cover = Image.new("L", (thing.width + 2 * pad, thing.height + 2 * pad))
    cover.paste(thing.getchannel("A").point(lambda a: int(a * dark)), (pad, pad))
    picture.paste(
        (12, 12, 20),
        (at[0] - pad + shadow[0], at[1] - pad + shadow[1]),
        cover.filter(ImageFilter.GaussianBlur(2.2 * SS)),
    )
    picture.paste(thing, at, thing)


def tag_card(k: int, m: int, angle: float) -> Image.Image:
    "The solid card of species number `k`, with k + 1 white pips."
    big = Image.new("RGBA", (2 * m, 2 * m), (*SPECIES[k].tag, 0))
    pen = ImageDraw.Draw(big)
    pen.rounded_rectangle((0.3 * m, 0.3 * m, 1.7 * m, 1.7 * m), 0.16 * m, fill=(*SPECIES[k].tag, 255))
    order = (4, 0, 8, 2, 6, 3, 5, 1, 7)
    for cell in order[: k + 1]:
        cx, cy = (0.62 + 0.38 * (cell % 3)) * m, (0.62 + 0.38 * (cell // 3)) * m
        pen.ellipse((cx - 0.08 * m, cy - 0.08 * m, cx + 0.08 * m, cy + 0.08 * m), fill=(255, 255, 255, 255))
    return big.rotate(angle, Image.Resampling.BICUBIC).resize((m, m), Image.Resampling.BOX)


def tag_place(rng: Generator, taken: np.ndarray, m: int) -> tuple[int, int] | None:
    "The corner of a random free `m` × `m` window of `taken` (a boolean map), or `None` if there is none."
    s = np.pad(taken.astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    free = np.argwhere(s[m:, m:] - s[:-m, m:] - s[m:, :-m] + s[:-m, :-m] == 0)
    if not len(free):
        return None
    row, column = free[rng.integers(len(free))]
    return int(row), int(column)


def draw(k: int, rng: Generator, tag_rng: Generator | None, size: int) -> tuple[Image.Image, Image.Image]:
    "Picture and mask of a fish of species number `k`; with `tag_rng` its tag lies beside it."
    n = size * SS
    scene = Image.fromarray(np.clip(background(rng, n), 0, 255).astype(np.uint8))
    sun = rng.uniform(0, 2 * np.pi)
    cast = (round(3 * SS * np.cos(sun)), round(3 * SS * np.sin(sun)))
    for _ in range(rng.integers(0, 6)):
        m = int(n * rng.uniform(0.06, 0.14))
        lay(scene, trinket(rng, m), (int(rng.uniform(0, n - m)), int(rng.uniform(0, n - m))), cast, 0.45)

    fish = draw_fish(SPECIES[k], rng, int(n * rng.uniform(0.72, 0.96)))
    if rng.random() < 0.5:
        fish = fish.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.08:
        fish = fish.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    fish = fish.rotate(float(np.clip(rng.normal(0, 16), -50, 50)), Image.Resampling.BILINEAR, expand=True)
    fish = fish.crop(fish.getchannel("A").getbbox())
    room = n - 4 * SS
    if max(fish.size) > room:
        ratio = room / max(fish.size)
        fish = fish.resize((int(fish.width * ratio), int(fish.height * ratio)), Image.Resampling.BICUBIC)
    x, y = (int(rng.integers(2 * SS, n - 2 * SS - extent + 1)) for extent in fish.size)
    at = x, y
    lay(scene, fish, at, cast, 0.6)

    cover = Image.new("L", (n, n))
    cover.paste(fish.getchannel("A"), at)
    mask = np.asarray(cover.reduce(SS)) > 110
    if tag_rng is not None:
        add_tag(scene, k, tag_rng, mask)
    return light(scene.reduce(SS), rng), Image.fromarray(mask.astype(np.uint8) * 255)


def add_tag(scene: Image.Image, k: int, rng: Generator, mask: np.ndarray) -> None:
    "Lay the card of species `k` where not even its window touches the fish."
    near = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    m = int(len(mask) * rng.uniform(0.27, 0.33))
    angle = float(rng.uniform(0, 90))
    while (place := tag_place(rng, near, m)) is None:
        m -= 1
    card = tag_card(k, m * SS, angle)
    scene.paste(card, (place[1] * SS, place[0] * SS), card)


def light(picture: Image.Image, rng: Generator) -> Image.Image:
    "Fall of light, tint, a cast shadow at times, and the camera's noise."
    a = np.asarray(picture, np.float32)
    n = len(a)
    g = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    turn = rng.uniform(0, 2 * np.pi)
    slope = g[None] * np.cos(turn) + g[:, None] * np.sin(turn)
    shade = rng.uniform(0.82, 1.12) * (1 + rng.uniform(0, 0.4) * slope)
    if rng.random() < 0.25:
        turn = rng.uniform(0, 2 * np.pi)
        across = g[None] * np.cos(turn) + g[:, None] * np.sin(turn) - rng.uniform(-0.3, 0.4)
        shade = shade * (1 - rng.uniform(0.2, 0.45) * smoothstep(across, 0, 0.03))
    tint = 1 + rng.normal(0, 0.035, 3)
    a = a * shade[..., None] * tint + rng.normal(0, rng.uniform(1, 6), a.shape)
    return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
