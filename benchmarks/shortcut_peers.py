"""Peers of the judge in `shortcuts.py`: this library's findings, and rules re-implemented from descriptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from shortcut_models import Pictures, normalised
from sklearn.cluster import KMeans
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn

from fastai_gradcam import Watch, gradcam

SEVERE = 0.4


def library_findings(net: nn.Module, p: Pictures, folder: Path, seed: int) -> list[list]:
    """Findings of a panel of 16 without masks, whose severity is at least 0.4: `[kind, label, severity]`."""
    part = torch.from_numpy(np.random.default_rng(seed).permutation(len(p.valid_y)))[:16]
    labels = [p.names[k] for k in p.valid_y[part]]
    images = [x.permute(1, 2, 0).numpy() for x in p.valid_x[part]]
    with Watch(net, normalised(p.valid_x[part]), images, labels, p.names, path=folder, name="run", show=False) as watch:
        watch(0, {})
    found = watch.run.findings()
    found = found[found["severity"] >= SEVERE]
    return [[r.kind, r.label, float(r.severity)] for r in found.itertuples()]


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
