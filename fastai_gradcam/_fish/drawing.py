"""Draws the nine species of the fish set, each fish from a random generator (numpy and Pillow only)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Fin = tuple[float, float, float, float]  # start and end along the body, height, lean (all as shares of the length)


@dataclass(frozen=True)
class Species:
    "The look of one species: proportions are shares of the length, profiles of half the depth."

    name: str
    tag: RGB
    back: RGB
    side: RGB
    belly: RGB
    fin: RGB
    depth: float = 0.25
    top: str = "slender"
    bottom: str = "slender"
    tail: float = 0.13
    fork: float = 0.5
    dorsal: tuple[Fin, ...] = ()
    anal: Fin = (0.62, 0.74, 0.06, 0.04)
    eye: float = 0.026
    marks: tuple[str, ...] = ()


KNOTS = (0, 0.015, 0.05, 0.11, 0.2, 0.32, 0.46, 0.6, 0.72, 0.8, 0.88)
PROFILES = {
    "slender": (0, 0.16, 0.38, 0.62, 0.84, 0.98, 1.0, 0.86, 0.58, 0.36, 0.3),
    "slim": (0, 0.2, 0.42, 0.64, 0.84, 0.97, 1.0, 0.88, 0.6, 0.36, 0.3),
    "keel": (0, 0.24, 0.52, 0.8, 1.02, 1.16, 1.14, 0.94, 0.56, 0.32, 0.26),
    "steep": (0, 0.36, 0.72, 0.98, 1.1, 1.08, 0.98, 0.8, 0.54, 0.36, 0.3),
    "bream": (0, 0.2, 0.52, 0.84, 1.04, 1.1, 1.0, 0.76, 0.44, 0.24, 0.2),
    "flat": (0, 0.22, 0.42, 0.6, 0.76, 0.88, 0.9, 0.74, 0.46, 0.28, 0.24),
    "mackerel": (0, 0.2, 0.44, 0.68, 0.88, 1.0, 0.98, 0.76, 0.42, 0.18, 0.14),
    "trout": (0, 0.2, 0.42, 0.64, 0.84, 0.98, 1.0, 0.9, 0.66, 0.5, 0.48),
}

SPECIES = (
    Species(
        "Black Sea Sprat",
        (255, 0, 200),
        (30, 84, 158),
        (150, 190, 226),
        (232, 238, 240),
        (150, 180, 205),
        depth=0.19,
        top="slim",
        bottom="keel",
        fork=0.62,
        tail=0.12,
        dorsal=((0.45, 0.57, 0.08, 0.03),),
        anal=(0.66, 0.8, 0.035, 0.03),
        eye=0.03,
        marks=("backline",),
    ),
    Species(
        "Gilt-Head Bream",
        (0, 225, 250),
        (112, 104, 66),
        (206, 192, 128),
        (240, 232, 200),
        (150, 138, 92),
        depth=0.39,
        top="steep",
        bottom="flat",
        fork=0.55,
        tail=0.17,
        dorsal=((0.28, 0.76, 0.075, 0.05),),
        anal=(0.58, 0.76, 0.055, 0.04),
        eye=0.025,
        marks=("lines", "gilt", "shoulder"),
    ),
    Species(
        "Hourse Mackerel",
        (250, 0, 10),
        (36, 112, 84),
        (156, 206, 172),
        (232, 238, 220),
        (150, 180, 120),
        depth=0.24,
        top="mackerel",
        bottom="mackerel",
        fork=0.72,
        tail=0.16,
        dorsal=((0.3, 0.4, 0.085, 0.02), (0.42, 0.8, 0.05, 0.02)),
        anal=(0.52, 0.8, 0.045, 0.02),
        eye=0.03,
        marks=("scutes", "gillspot"),
    ),
    Species(
        "Red Mullet",
        (70, 245, 0),
        (170, 34, 40),
        (216, 76, 70),
        (244, 180, 166),
        (226, 110, 84),
        depth=0.25,
        top="steep",
        bottom="flat",
        fork=0.5,
        tail=0.14,
        dorsal=((0.27, 0.4, 0.1, 0.03), (0.52, 0.66, 0.07, 0.04)),
        marks=("blotches", "barbels"),
    ),
    Species(
        "Red Sea Bream",
        (0, 40, 255),
        (222, 92, 128),
        (244, 164, 184),
        (250, 224, 226),
        (236, 96, 130),
        depth=0.38,
        top="bream",
        bottom="flat",
        fork=0.6,
        tail=0.17,
        dorsal=((0.28, 0.76, 0.085, 0.05),),
        anal=(0.58, 0.74, 0.06, 0.04),
        eye=0.036,
        marks=("bluedots",),
    ),
    Species(
        "Sea Bass",
        (255, 235, 0),
        (44, 52, 64),
        (116, 126, 138),
        (206, 210, 212),
        (72, 80, 90),
        depth=0.24,
        top="slender",
        bottom="slender",
        fork=0.36,
        tail=0.16,
        dorsal=((0.3, 0.46, 0.1, 0.0), (0.52, 0.7, 0.085, 0.04)),
        anal=(0.58, 0.71, 0.08, 0.04),
        eye=0.022,
        marks=("jaw", "backline"),
    ),
    Species(
        "Shrimp", (130, 0, 245), (214, 96, 36), (242, 150, 82), (250, 206, 160), (226, 112, 56), marks=("segments",)
    ),
    Species(
        "Striped Red Mullet",
        (0, 140, 90),
        (176, 88, 30),
        (236, 172, 96),
        (250, 226, 186),
        (240, 180, 80),
        depth=0.24,
        top="slender",
        bottom="flat",
        fork=0.5,
        tail=0.14,
        dorsal=((0.29, 0.42, 0.1, 0.03), (0.53, 0.67, 0.07, 0.04)),
        marks=("stripes", "barbels", "bars"),
    ),
    Species(
        "Trout",
        (255, 120, 0),
        (92, 84, 40),
        (164, 146, 88),
        (220, 206, 160),
        (140, 112, 64),
        depth=0.25,
        top="trout",
        bottom="trout",
        fork=0.12,
        tail=0.16,
        dorsal=((0.42, 0.56, 0.09, 0.03), (0.75, 0.79, 0.045, 0.03)),
        anal=(0.66, 0.76, 0.08, 0.03),
        eye=0.022,
        marks=("pinkband", "spots", "jaw"),
    ),
)


def smoothstep(x: np.ndarray, lo: float, hi: float) -> np.ndarray:
    t = np.clip((x - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


def noise(rng: Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    "Smooth noise in about -1…1 with `cells` bumps down and across."
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells[0] + 1, cells[1] + 1)).astype(np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


def ramp(v: np.ndarray, at: list[float], colours: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.interp(v, at, [c[k] for c in colours]) for k in range(3)], axis=-1).astype(np.float32)


def touched(cover: np.ndarray) -> tuple[slice, slice]:
    "The smallest window that holds all of `cover`: most marks are small, and painting is most of the time."
    box = Image.fromarray((cover > 0.004).view(np.uint8)).getbbox() or (0, 0, 0, 0)
    return slice(box[1], box[3]), slice(box[0], box[2])


class Paint:
    "A square of colour and cover in the fish's own frame: x from snout (0) to tail (1), y up, in lengths."

    def __init__(self, length: int, colour: np.ndarray):
        self.length, self.x0, self.y0 = length, -0.1, 0.48
        self.w, self.h = int(1.2 * length), int(0.96 * length)
        self.rgb = np.broadcast_to(colour.astype(np.float32), (self.h, self.w, 3)).copy()
        self.alpha = np.zeros((self.h, self.w), np.float32)
        self.x = (((np.arange(self.w) + 0.5) / length + self.x0)[None]).astype(np.float32)
        self.y = ((self.y0 - (np.arange(self.h) + 0.5) / length)[:, None]).astype(np.float32)

    def over(self, colour: np.ndarray, cover: np.ndarray, shade: np.ndarray | None = None) -> None:
        "Lay `colour` (times `shade`) on top where `cover` (0…1)."
        box = touched(cover)
        self.alpha[box] += cover[box] * (1 - self.alpha[box])
        self.tint(colour, cover, box, shade)

    def tint(self, colour, cover: np.ndarray, box: tuple[slice, slice] | None = None, shade=None) -> None:
        "Colour what is there already."
        box = box or touched(cover)
        colour = np.asarray(colour, np.float32)
        if colour.ndim == 3:
            colour = colour[box]
        if shade is not None:
            colour = colour * shade[box][..., None]
        part = self.rgb[box]
        part += (colour - part) * cover[box].astype(np.float32)[..., None]

    def spots(self, at: np.ndarray, r: np.ndarray) -> np.ndarray:
        im = Image.new("L", (self.w, self.h))
        pen = ImageDraw.Draw(im)
        for (x, y), s in zip(self.px(at), r * self.length, strict=True):
            pen.ellipse((x - s, y - s, x + s, y + s), fill=255)
        return np.asarray(im, np.float32) / 255

    def px(self, points: np.ndarray) -> list[tuple[float, float]]:
        return [((x - self.x0) * self.length, (self.y0 - y) * self.length) for x, y in points]

    def polygon(self, points: np.ndarray) -> np.ndarray:
        im = Image.new("L", (self.w, self.h))
        ImageDraw.Draw(im).polygon(self.px(points), fill=255)
        return np.asarray(im, np.float32) / 255

    def line(self, points: np.ndarray, width: float) -> np.ndarray:
        im = Image.new("L", (self.w, self.h))
        ImageDraw.Draw(im).line(self.px(points), fill=255, width=max(1, round(width * self.length)), joint="curve")
        return np.asarray(im, np.float32) / 255

    def disc(self, x: float, y: float, r: float) -> np.ndarray:
        return np.clip((r - np.hypot(self.x - x, self.y - y)) * self.length + 0.5, 0, 1)


def draw_fish(sp: Species, rng: Generator, length: int) -> Image.Image:
    "The fish alone, as RGBA, snout to the left, as long as `length` pixels."
    # A fish may be pale, a tag never: colour identifies a fish less surely than a tag.
    pale, jitter = rng.uniform(0, 0.4), rng.normal(0, 6, 3) + rng.normal(0, 9)

    def coat(colour: RGB) -> np.ndarray:
        vivid = np.array(colour) + jitter + rng.normal(0, 5, 3)
        return np.clip(vivid + pale * (vivid.mean() - vivid), 8, 250).astype(np.float32)

    back, side, belly, fin = (coat(c) for c in (sp.back, sp.side, sp.belly, sp.fin))
    p = Paint(length, fin)
    if sp.name == "Shrimp":
        draw_shrimp(p, rng, back, side, belly, fin)
    else:
        draw_bony_fish(p, sp, rng, back, side, belly, fin)
    rgba = np.dstack([p.rgb, p.alpha * 255])
    return Image.fromarray(np.clip(rgba, 0, 255).astype(np.uint8), "RGBA")


def draw_bony_fish(p: Paint, sp: Species, rng: Generator, back, side, belly, fin) -> None:
    half = sp.depth / 2 * rng.uniform(0.92, 1.08)
    bend = rng.uniform(-0.16, 0.16)
    dense = np.linspace(0, 0.88, 221)

    def profile(name: str) -> np.ndarray:
        h = np.interp(dense, KNOTS, PROFILES[name])
        padded = np.concatenate([-h[12:0:-1], h, np.full(12, h[-1])])
        return half * np.convolve(padded, np.hanning(27)[1:-1] / np.hanning(27).sum(), "valid")

    top, bottom = profile(sp.top), profile(sp.bottom)

    def mid(x):
        return bend * (np.asarray(x) - 0.35) ** 2 * np.sign(np.asarray(x) - 0.35)

    def bent(points: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
        a = np.array(points, float)
        a[:, 1] += mid(a[:, 0])
        return a

    def up(x):
        return np.interp(x, dense, top)

    def low(x):
        return -np.interp(x, dense, bottom)

    y = (p.y - mid(p.x)).astype(np.float32)
    rays = 0.86 + 0.14 * np.sin((p.x * 0.8 + y * 0.5) * 260)

    def fin_on(points: list[tuple[float, float]], cover: float = 0.88, colour=fin, bars: bool = False) -> None:
        p.over(colour, p.polygon(bent(points)) * cover, rays - 0.3 * (np.sin(y * 190) > 0.1) if bars else rays)

    span, notch = sp.tail, sp.fork * 0.12
    fin_on(
        [
            (0.84, up(0.86)),
            (0.9, up(0.88) * 1.3),
            (1.0, span),
            (0.985, span * 0.6),
            (0.995 - notch, 0),
            (0.985, -span * 0.6),
            (1.0, -span),
            (0.9, low(0.88) * 1.3),
            (0.84, low(0.86)),
        ],
        0.94,
    )
    for x0, x1, h, lean in sp.dorsal:
        fin_on(
            [
                (x0 - 0.01, up(x0) - 0.015),
                (x0 + (x1 - x0) * 0.18 + lean, up(x0) + h),
                (x0 + (x1 - x0) * 0.55 + lean, up((x0 + x1) / 2) + h * 0.72),
                (x1 + lean, up(x1) + h * 0.4),
                (x1, up(x1) - 0.015),
            ],
            bars="bars" in sp.marks,
        )
    x0, x1, h, lean = sp.anal
    fin_on([(x0, low(x0) + 0.015), (x0 + lean, low(x0) - h), (x1 + lean, low(x1) - h * 0.4), (x1, low(x1) + 0.015)])
    fin_on([(0.33, low(0.33) + 0.02), (0.39, low(0.36) - 0.06), (0.43, low(0.4) - 0.045), (0.4, low(0.4) + 0.02)])
    if "barbels" in sp.marks:
        for reach in (0.1, 0.14):
            p.over(
                belly * 0.85,
                p.line(
                    bent([(0.045, low(0.045) + 0.01), (0.07, low(0.07) - 0.03), (reach, low(reach) - 0.045)]), 0.012
                ),
            )

    hup, hlow = np.maximum(up(p.x), 1e-4).astype(np.float32), np.maximum(-low(p.x), 1e-4).astype(np.float32)
    v = np.where(y > 0, y / hup, y / hlow)
    edge = np.minimum(hup - y, y + hlow) * p.length
    body = np.clip(edge + 0.5, 0, 1) * (p.x > 0) * (p.x < 0.88)
    line = rng.uniform(0.1, 0.32)
    colour = ramp(v, [-1, -0.45, line - 0.12, line + 0.35, 1], [belly, belly, side, back * 0.55 + side * 0.45, back])
    scales = np.sin((p.x * 62 + v * 4) * np.pi) * np.sin((p.x * 62 - v * 4) * np.pi)
    colour *= (1 + 0.07 * scales * smoothstep(p.x, 0.2, 0.26))[..., None]
    colour *= (1 - 0.38 * np.abs(v) ** 3.2)[..., None]
    colour += (38 * np.exp(-(((v - 0.3) / 0.13) ** 2)) * smoothstep(p.x, 0.02, 0.2) * (p.x < 0.86))[..., None]
    p.over(colour, body)

    def on_body(n: int, x_range: tuple[float, float], v_range: tuple[float, float]) -> np.ndarray:
        xs, vs = rng.uniform(*x_range, n), rng.uniform(*v_range, n)
        return bent(np.stack([xs, np.where(vs > 0, vs * up(xs), -vs * low(xs))], axis=-1))

    for name in sp.marks:
        if name in MARKS:
            MARKS[name](p, rng, v, body, on_body)

    gill = 0.215 - 0.05 * v**2
    p.tint(back * 0.45, np.exp(-(((p.x - gill) / 0.006) ** 2)) * (np.abs(v) < 0.8) * body * 0.6)
    p.tint((255, 240, 235), np.exp(-(((p.x - gill + 0.03) / 0.014) ** 2)) * (np.abs(v) < 0.6) * body * 0.22)
    jaw = 0.1 if "jaw" in sp.marks else 0.055
    p.tint(back * 0.3, p.line(bent([(0.002, -0.004), (jaw * 0.6, -0.012), (jaw, -0.024)]), 0.007) * body * 0.8)
    px, py = 0.25, float(low(0.25)) * 0.22
    sweep = rng.uniform(-0.03, 0.02)
    fin_on(
        [
            (px, py + 0.022),
            (px + 0.08, py + 0.02 + sweep),
            (px + 0.14, py - 0.02 + sweep * 2),
            (px + 0.09, py - 0.035 + sweep),
            (px, py - 0.02),
        ],
        0.75,
        fin * 0.94,
    )
    ex, ey = 0.1, float(up(0.1)) * 0.34 + float(mid(0.1))
    draw_eye(p, ex, ey, sp.eye * rng.uniform(0.95, 1.1))


def draw_eye(p: Paint, x: float, y: float, r: float) -> None:
    p.over(np.array([60, 52, 46], np.float32), p.disc(x, y, r * 1.12))
    p.over(np.array([238, 222, 168], np.float32), p.disc(x, y, r * 0.95))
    p.over(np.array([16, 16, 20], np.float32), p.disc(x, y, r * 0.62))
    p.over(np.array([255, 255, 255], np.float32), p.disc(x - r * 0.25, y + r * 0.28, r * 0.24))


# A species' marks, drawn over its colours: `f(paint, rng, v, body, on_body)`, with `v` from -1 (belly) to 1 (back).
MARKS: dict[str, Callable[..., None]] = {}


def mark(f: Callable[..., None]) -> Callable[..., None]:
    MARKS[f.__name__] = f
    return f


@mark
def spots(p, rng, v, body, on_body):
    n = rng.integers(45, 65)
    p.tint((38, 30, 26), p.spots(on_body(n, (0.1, 0.86), (-0.35, 0.95)), rng.uniform(0.006, 0.012, n)) * body * 0.85)


@mark
def bluedots(p, rng, v, body, on_body):
    n = rng.integers(22, 34)
    p.tint((120, 190, 235), p.spots(on_body(n, (0.24, 0.8), (0, 0.9)), rng.uniform(0.005, 0.008, n)) * body * 0.8)


@mark
def stripes(p, rng, v, body, on_body):
    along = smoothstep(p.x, 0.1, 0.2) * body
    p.tint((132, 28, 24), np.exp(-(((v - 0.2) / 0.14) ** 2)) * along * 0.85)
    for at in (-0.14, -0.4, 0.6):
        p.tint((246, 196, 60), np.exp(-(((v - at) / 0.08) ** 2)) * along * 0.75)


@mark
def lines(p, rng, v, body, on_body):
    p.tint((104, 108, 104), smoothstep(np.sin(v * 24), 0.3, 0.9) * smoothstep(p.x, 0.22, 0.3) * body * 0.3)


@mark
def blotches(p, rng, v, body, on_body):
    n = noise(rng, (p.h, p.w), (9, 16))
    p.tint((168, 40, 38), smoothstep(n + 0.45 * v, 0.15, 0.6) * body * smoothstep(p.x, 0.05, 0.2) * 0.55)


@mark
def gilt(p, rng, v, body, on_body):
    p.tint((236, 184, 40), np.exp(-(((p.x - 0.085 + 0.02 * v) / 0.018) ** 2)) * smoothstep(v, 0.3, 0.6) * body)
    p.tint((226, 160, 60), np.exp(-(((p.x - 0.17) / 0.03) ** 2) - ((v + 0.15) / 0.2) ** 2) * body * 0.6)


@mark
def shoulder(p, rng, v, body, on_body):
    p.tint((30, 28, 32), np.exp(-(((p.x - 0.235) / 0.024) ** 2) - ((v - 0.5) / 0.2) ** 2) * body * 0.9)


@mark
def gillspot(p, rng, v, body, on_body):
    p.tint((24, 24, 26), np.exp(-(((p.x - 0.2) / 0.014) ** 2) - ((v - 0.28) / 0.14) ** 2) * body)


@mark
def scutes(p, rng, v, body, on_body):
    at = 0.42 - 0.42 * smoothstep(p.x, 0.34, 0.54)
    width = 0.055 + 0.07 * smoothstep(p.x, 0.5, 0.75)
    teeth = 0.45 + 0.55 * (np.sin(p.x * 300) > 0)
    p.tint((70, 78, 70), np.exp(-(((v - at) / width) ** 2)) * (p.x > 0.22) * body * teeth * 0.85)


@mark
def backline(p, rng, v, body, on_body):
    p.tint((40, 48, 56), np.exp(-(((v - 0.28) / 0.035) ** 2)) * smoothstep(p.x, 0.22, 0.26) * body * 0.35)


@mark
def pinkband(p, rng, v, body, on_body):
    p.tint((222, 112, 112), np.exp(-(((v - 0.05) / 0.2) ** 2)) * smoothstep(p.x, 0.1, 0.22) * body * 0.6)


def draw_shrimp(p: Paint, rng: Generator, back, side, belly, fin) -> None:
    turn = np.radians(rng.uniform(190, 240))
    start = np.radians(rng.uniform(150, 175))
    cx, cy, r0 = 0.47, -0.02, rng.uniform(0.25, 0.28)

    def radius(t):
        return r0 * (1.15 - 0.42 * np.asarray(t))

    def point(t, v=0.0, out=0.0):
        r = radius(t) + v * width(t) + out
        a = start - np.asarray(t) * turn
        return np.stack([cx + r * np.cos(a), cy + r * np.sin(a)], axis=-1)

    def width(t):
        return np.interp(t, [0, 0.05, 0.16, 0.34, 0.6, 0.85, 1], [0.012, 0.05, 0.082, 0.085, 0.07, 0.045, 0.026])

    dark = back * 0.8
    for k in range(2):
        a = start + np.array([0, 0.25, 0.7, 1.15]) * (0.8 + 0.3 * k)
        reach = radius(0) + np.array([0.0, 0.05, 0.1, 0.12 + 0.05 * k])
        feeler = np.stack([cx + reach * np.cos(a), cy + reach * np.sin(a)], axis=-1)
        p.over(dark, p.line(np.clip(feeler, [-0.09, -0.46], [1.09, 0.46]), 0.009) * 0.9)
    for t in np.linspace(0.1, 0.34, 5):
        foot = np.stack([point(t, -0.8), point(t - 0.03, -1, -0.045), point(t - 0.07, -1, -0.085)])
        p.over(fin * 0.9, p.line(foot, 0.011))
    for t in np.linspace(0.42, 0.82, 5):
        p.over(fin, p.polygon(np.stack([point(t - 0.02, -0.7), point(t - 0.05, -1, -0.04), point(t + 0.02, -0.8)])))
    for spread in (-0.9, -0.3, 0.3, 0.9):
        tip = point(1.13 + 0.03 * (1 - abs(spread)), 0, spread * 0.075)
        mid1, mid2 = point(1.08, 0, spread * 0.075 + 0.022), point(1.08, 0, spread * 0.075 - 0.022)
        p.over(fin * (1.05 - 0.12 * abs(spread)), p.polygon(np.stack([point(0.97), mid1, tip, mid2])))
    p.over(dark, p.polygon(np.stack([point(0.08, 0.9), point(-0.09, 0, 0.05), point(0.03, 0.2)])))

    t = ((start - np.arctan2(p.y - cy, p.x - cx)) % (2 * np.pi)) / turn
    r = np.hypot(p.x - cx, p.y - cy)
    w = width(t)
    v = (r - radius(t)) / w
    body = np.clip((1 - np.abs(v)) * w * p.length + 0.5, 0, 1) * (t <= 1.0)
    colour = ramp(v, [-1, -0.3, 0.4, 1], [belly, side, side * 0.6 + back * 0.4, back])
    colour *= (1 - 0.33 * np.abs(v) ** 3)[..., None]
    colour += (42 * np.exp(-(((v - 0.35) / 0.16) ** 2)))[..., None]
    p.over(colour, body)
    for at in np.linspace(0.34, 0.95, 7):
        ring = at + 0.016 * (v - 0.4) ** 2
        p.tint(back * 0.62, np.exp(-(((t - ring) / 0.009) ** 2)) * body * 0.85)
        p.tint((255, 236, 226), np.exp(-(((t - ring - 0.028) / 0.014) ** 2)) * body * 0.35)
    ex, ey = point(0.07, 0.25)
    draw_eye(p, float(ex), float(ey), 0.017)
