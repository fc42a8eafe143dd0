"""A synthetic run folder for the report's tests: blobs that drift over pictures, and the numbers that go with them."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from fastai_gradcam._run.verdicts import Picture, write_table, write_verdicts

COLUMNS = (
    "frame fit epoch item layer label target prob pred pred_prob correct loss evidence negative_share entropy "
    "concentration border_share centroid_y centroid_x centroid_shift similarity_prev similarity_first iou_prev "
    "mask_share pointing_hit"
).split()
LABELS = ["Trout", "Salmon", "Perch", "Sea bass"]


def make_run(
    path,
    *,
    n=6,
    frames=5,
    layers=("0.7.2",),
    cells=7,
    size=(128, 128),
    classes=1,
    labels=LABELS,
    names=None,
    masks=True,
    photos=None,
    status="finished",
    failed=(),
    empty=(),
    metrics=("train_loss", "valid_loss", "accuracy"),
    info=None,
    seed=0,
):
    """Write a run folder under `path` and return it. `photos`: picture files with their labels in place of drawings;
    `failed`: frames that failed; `empty`: (frame, image) pairs whose map is all zero; `info`: more for run.json."""
    rng = np.random.default_rng(seed)
    path = Path(path)
    for folder in ("panel", "maps", "frames"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    panel, boxes = _panel(path, rng, n, size, labels, names, masks, photos)
    blobs = _Blobs(rng, n, boxes)
    infos, rows, previous, first = [], [], {}, {}
    for frame in range(frames):
        progress = frame / max(1, frames - 1)
        fit, epoch = _when(frame, frames)
        infos.append(_frame_info(rng, frame, fit, epoch, progress, metrics, frame in failed))
        if frame in failed:
            continue
        arrays = {}
        for depth, layer in enumerate(layers):
            side = cells * 2 ** (len(layers) - 1 - depth)
            maps = blobs.maps(progress, side, classes)
            for when, item in empty:
                if when == frame:
                    maps[item] = 0
            arrays[layer] = maps if classes > 1 else maps[:, 0]
            for item in range(n):
                for k in range(classes):
                    key = (layer, item, k)
                    row = _row(
                        rng, maps[item, k], previous.get(key), first.get(key), panel[item], boxes[item], progress
                    )
                    target = panel[item]["label"] if classes == 1 else labels[k % len(labels)]
                    row |= {"frame": frame, "fit": fit, "epoch": epoch, "item": item, "layer": layer, "target": target}
                    row |= _answer(blobs, item, progress, panel[item]["label"], labels)
                    rows.append(row)
                    previous[key] = maps[item, k]
                    first.setdefault(key, maps[item, k])
        np.savez(path / f"maps/frame-{frame:03d}.npz", **arrays)
    _write_history(path, rows)
    written = {
        "schema_version": 1,
        "status": status,
        "name": path.name,
        "created": "2026-11-21T10:15:02",
        "updated": "2026-11-21T10:41:47",
        "pid": 1,
        "host": "localhost",
        "arch": "resnet34",
        "settings": {"n": n, "layer": None, "target": "true", "method": "gradcam", "every": 1, "seed": 12345},
        "layers": list(layers),
        "vocab": list(labels),
        "panel": panel,
        "frames": infos,
        "versions": {"fastai_gradcam": "0.1.0", "fastai": "2.8.12", "torch": "2.13.0"},
    }
    (path / "run.json").write_text(json.dumps(written | (info or {})), encoding="utf-8")
    return path


def judge_run(path, label="Trout", frames=(2, 3)):
    """Write what a judgement found into the run `path`: a shortcut of one class, with pictures of two patches and of
    three images before and after, and an alarm in each of `frames`."""
    row = {"images": 20, "effect": 0.75, "control": 0.05, "low": 0.4, "high": 0.9}
    trials = []
    for name in LABELS:
        for test in ("transplant", "place"):
            found = (name, test) == (label, "transplant")
            trials.append({"label": name, "test": test, "verdict": "shortcut" if found else "clear"} | row)
    classes = [{"label": name, "place": "top left corner", "area": 0.04} for name in LABELS]
    pictures = [
        Picture(label, "", Image.new("RGB", (228, 112), "magenta"), "the hottest patches"),
        Picture(label, "transplant", Image.new("RGB", (344, 228), "teal"), "Perch became Trout; Salmon became Trout"),
    ]
    write_verdicts(path, pd.DataFrame(trials), pd.DataFrame(), classes, pictures)
    write_table(path, "alarms", [{"label": label, "test": "transplant", "frame": frame} | row for frame in frames])
    return path


def _when(frame, frames):
    frozen = 1 + max(1, (frames - 1) // 5)
    return (0, frame - 1) if frame < frozen else (1, frame - frozen)


def _frame_info(rng, frame, fit, epoch, progress, metrics, failed):
    level = {"loss": 2.1 * np.exp(-3 * progress) + 0.15, "other": 1 - 0.85 * np.exp(-3.5 * progress)}
    values = {}
    for name in metrics if frame else ():
        value = level["loss" if "loss" in name else "other"] * (1.12 if "valid" in name else 1)
        value = float(value * rng.normal(1, 0.02))
        values[name] = round(value if "loss" in name else min(1.0, value), 5)
    return {
        "frame": frame,
        "fit": fit,
        "epoch": epoch,
        "metrics": values,
        "status": "failed" if failed else "ok",
        "error": "RuntimeError: out of memory" if failed else None,
        "created": "2026-11-21T10:15:02",
    }


def _panel(path, rng, n, size, labels, names, masks, photos):
    panel, boxes = [], []
    for item in range(n):
        label = photos[item][1] if photos else labels[item % len(labels)]
        image, box = _photo(photos[item][0], size, rng) if photos else _drawing(rng, size, item)
        image.save(path / f"panel/{item:03d}.jpg", quality=92)
        entry = {"item": item, "name": names[item] if names else f"{label}/{item:05d}.png", "label": label}
        entry |= {"image": f"panel/{item:03d}.jpg", "mask": None, "width": size[0], "height": size[1]}
        if masks:
            entry["mask"] = f"panel/{item:03d}-mask.png"
            mask = Image.new("L", size)
            ImageDraw.Draw(mask).ellipse([v * s for v, s in zip(box, size * 2, strict=True)], fill=255)
            mask.save(path / entry["mask"])
        panel.append(entry)
        boxes.append(box)
    return panel, boxes


def _photo(file, size, rng):
    image = Image.open(file).convert("RGB")
    scale = max(size[0] / image.width, size[1] / image.height)
    image = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1))
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1])), (0.2, 0.12, 0.8, 0.9)


def _drawing(rng, size, item):
    w, h = size
    y, x = np.mgrid[0:h, 0:w]
    sky = np.stack([90 + 60 * y / h, 120 + 40 * x / w, 160 - 50 * y / h], -1) + rng.normal(0, 6, (h, w, 3))
    image = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
    cx, cy = rng.uniform(0.35, 0.65, 2)
    box = (cx - 0.28, cy - 0.17, cx + 0.28, cy + 0.17)
    colour = tuple(int(c) for c in rng.integers(60, 250, 3))
    ImageDraw.Draw(image).ellipse([v * s for v, s in zip(box, size * 2, strict=True)], fill=colour)
    return image, box


class _Blobs:
    """Attention that starts somewhere in the picture and drifts onto the object while training goes on."""

    def __init__(self, rng, n, boxes):
        self.start = rng.uniform(0.05, 0.95, (n, 2))
        self.end = np.array([((b[1] + b[3]) / 2, (b[0] + b[2]) / 2) for b in boxes]) + rng.normal(0, 0.05, (n, 2))
        self.late = rng.uniform(0.2, 0.8, n)
        self.strength = rng.uniform(0.4, 2.5, n)
        self.stubborn = rng.random(n) < 0.15

    def there(self, item, progress):
        if self.stubborn[item]:
            return 0.1
        return 1 / (1 + np.exp(-12 * (progress - self.late[item])))

    def maps(self, progress, side, classes):
        y, x = (np.mgrid[0:side, 0:side] + 0.5) / side
        out = np.zeros((len(self.start), classes, side, side), np.float32)
        for item in range(len(self.start)):
            t = self.there(item, progress)
            for k in range(classes):
                cy, cx = (1 - t) * self.start[item] + t * self.end[item] + 0.12 * k
                width = 0.32 - 0.14 * t
                blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
                out[item, k] = (self.strength[item] * (0.3 + t) * blob - 0.12).clip(0)
        return out


def _answer(blobs, item, progress, label, labels):
    t = blobs.there(item, progress)
    prob = 0.15 + 0.82 * t
    wrong = labels[(labels.index(label) + 1) % len(labels)] if label in labels else labels[0]
    right = t > 0.35
    return {
        "prob": prob,
        "pred": label if right else wrong,
        "pred_prob": prob if right else max(0.4, 0.9 - prob),
        "correct": bool(right),
        "loss": -np.log(prob),
    }


def _row(rng, cam, previous, first, entry, box, progress):
    """The numbers of one map, near enough to the real measures to look at."""
    row = {"label": entry["label"], "evidence": cam.sum(), "negative_share": 0.3}
    total = cam.sum()
    if not total:
        return row
    side = len(cam)
    p = cam / total
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side
    border = np.ones_like(p, bool)
    border[1:-1, 1:-1] = False
    inside = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    positive = p[p > 0]
    row |= {
        "entropy": -(positive * np.log(positive)).sum() / np.log(max(2, p.size)),
        "concentration": np.sort(p.ravel())[-max(1, p.size // 10) :].sum(),
        "border_share": p[border].sum(),
        "centroid_y": (p * y).sum(),
        "centroid_x": (p * x).sum(),
    }
    if entry["mask"]:
        row |= {"mask_share": p[inside].sum(), "pointing_hit": bool(inside.flat[p.argmax()])}
    if previous is not None and previous.any():
        was = previous / previous.sum()
        moved = np.hypot((p * y).sum() - (was * y).sum(), (p * x).sum() - (was * x).sum())
        row |= {"centroid_shift": moved, "similarity_prev": np.corrcoef(p.ravel(), was.ravel())[0, 1]}
        row |= {"similarity_first": np.corrcoef(p.ravel(), first.ravel())[0, 1], "iou_prev": 0.7}
    return row


def _write_history(path, rows):
    with open(path / "history.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
