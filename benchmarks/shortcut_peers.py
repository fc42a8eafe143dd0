"""Peers of the judge in `shortcuts.py`: this library before judging, and rules re-implemented from descriptions."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from subprocess import PIPE

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from shortcut_models import Pictures, normalised
from sklearn.cluster import KMeans
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn

from fastai_gradcam import gradcam

HERE = Path(__file__).resolve().parent
BEFORE = "4fa8a31"  # the last commit whose findings come from maps alone
SEVERE = 0.4


def library_findings(net: nn.Module, p: Pictures, work: Path) -> list[list]:
    """Findings of the version before judging, whose severity is at least 0.4: `[kind, label, severity]`."""
    old = work / BEFORE
    if not old.exists():
        packed = subprocess.run(["git", "archive", BEFORE, "fastai_gradcam"], cwd=HERE.parent, stdout=PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
            tar.extractall(old, filter="data")
    with tempfile.TemporaryDirectory() as folder:
        torch.save((net, p.names), Path(folder) / "net.pt")
        for i, (x, k) in enumerate(zip(p.valid_x, p.valid_y, strict=True)):
            file = Path(folder) / "valid" / p.names[k] / f"{i:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x.permute(1, 2, 0).numpy()).save(file, compress_level=1)
        command = [sys.executable, HERE / "shortcut_findings.py", folder]
        env = os.environ | {"PYTHONPATH": str(old.resolve()), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        env["PYTHONWARNINGS"] = "ignore"
        done = subprocess.run(command, env=env, stdout=PIPE, text=True, check=True)
    return [row for row in json.loads(done.stdout.splitlines()[-1]) if row[2] >= SEVERE]


def focused_cluster(net: nn.Module, p: Pictures, clusters: int = 5) -> bool:
    """Whether a cluster of maps is focused and pure: ShortKit's rule, from its description.

    Maps are pooled to 7 × 7 and scaled to a sum of 1. Focused: half of the mass of the cluster's mean map lies in a
    tenth of its cells. Pure: nine in ten of at least five images are of one class.
    """
    maps = []
    for x, y in zip(p.valid_x.split(32), p.valid_y.split(32), strict=True):
        maps.append(F.adaptive_avg_pool2d(gradcam(net, normalised(x), target=y).maps[0][:, None], 7).flatten(1))
    found = torch.cat(maps)
    found = (found / found.sum(1, keepdim=True).clamp(min=1e-12)).numpy()
    groups = KMeans(clusters, n_init=3, random_state=0).fit_predict(found)
    for k in range(clusters):
        mine, mean = p.valid_y[groups == k].numpy(), np.sort(found[groups == k].mean(0))[::-1]
        if len(mine) >= 5 and np.bincount(mine).max() / len(mine) >= 0.9 and mean[:5].sum() >= 0.5 * mean.sum():
            return True
    return False


def property_score(x: Tensor, y: Tensor) -> bool:
    """Whether one property of the pictures predicts the class: cleanlab's score, below its default of 0.3.

    Score: (1 − accuracy) / (1 − share of the largest class), by cross-validated naive Bayes on the property alone;
    cleanlab takes the index of the largest class for its share.
    """
    grey = x.float().mean(1) / 255
    edges = grey[:, 1:-1, 1:-1] * 4 - grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1] - grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    counts = torch.stack([torch.histc(g, 32, 0, 1) for g in grey]) / grey[0].numel()
    properties = {
        "brightness": grey.flatten(1).mean(1),
        "darkness": grey.flatten(1).quantile(0.99, dim=1),
        "lightness": grey.flatten(1).quantile(0.05, dim=1),
        "blurriness": edges.flatten(1).var(1).clamp(min=1e-9).log(),
        "information": -(counts * counts.clamp(min=1e-9).log()).sum(1),
        "colour": x.float().std(1).flatten(1).mean(1),
    }
    most = np.bincount(y.numpy()).max() / len(y)
    for values in properties.values():
        guess = cross_val_predict(GaussianNB(), values[:, None].numpy(), y.numpy(), cv=5)
        if (1 - (guess == y.numpy()).mean()) / (1 - most) < 0.3:
            return True
    return False
