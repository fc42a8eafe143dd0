"""The judge on networks whose answers are known by construction: what they look at is what it names, or it is silent.

All pictures are 40 pixels of dim noise with a square, red, green or blue by class, at a random place. Networks are a few
filters set by hand. Class 0 has something more: a stamp, a corner, a frame, a cast, or a background of its own.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fastai_gradcam import GradCAMError
from fastai_gradcam._judge.rule import alike, distance, interval, spread
from fastai_gradcam.judge import COLUMNS, PASSES, interventions, judge
from training import differences, state_around

NAMES = ["red", "green", "blue"]
SIZE, SQUARE = 40, 12
STAMP = torch.tensor([1.0, 0.0, 1.0])[:, None, None]


def pictures(extra=None, n=72, seed=0, batch=24):
    "Batches `(x, y, masks)` in which class 0 has the `extra`."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.rand(n, 3, SIZE, SIZE, generator=g) * 0.2
    masks = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    for k in range(n):
        i, j = (int(torch.randint(8, SIZE - SQUARE - 8, (), generator=g)) for _ in range(2))
        masks[k, i : i + SQUARE, j : j + SQUARE] = True
        x[k, int(y[k]), i : i + SQUARE, j : j + SQUARE] = 0.8
        a, b = (int(torch.randint(0, SIZE - 6, (), generator=g)) for _ in range(2))
        if y[k] == 0 and extra == "stamp":
            x[k, :, a : a + 6, b : b + 6] = STAMP
        if y[k] == 0 and extra == "corner":
            x[k, :, :6, :6] = STAMP
        if y[k] == 0 and extra == "frame":
            x[k, :, [0, 1, -1, -2]], x[k, :, :, [0, 1, -1, -2]] = STAMP, STAMP
        if y[k] == 0 and extra == "cast":
            x[k] += torch.tensor([0.3, 0.0, 0.3])[:, None, None]
        if y[k] == 0 and extra == "background":
            x[k] = torch.where(masks[k], x[k], x[k] + torch.tensor([0.25, 0.0, 0.25])[:, None, None])
    return [(x[i : i + batch], y[i : i + batch], masks[i : i + batch]) for i in range(0, n, batch)]


class Filters(nn.Module):
    "Scores are the mean, over the picture, of how much the pixels are of each class's colour, times its weight."

    def __init__(self, first, weights=(1.0, 1.0, 1.0), where=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        filters = {
            # Each answers to its own colour and to no other that is in the pictures.
            "red": ([1.0, -1.0, -1.0], -0.2),
            "green": ([-1.0, 1.0, -1.0], -0.2),
            "blue": ([-1.0, -1.0, 1.0], -0.2),
            "stamp": ([1.0, -2.0, 1.0], -1.1),
            "magenta": ([1.0, -1.0, 1.0], -0.35),
        }
        with torch.no_grad():
            for k, name in enumerate((first, "green", "blue")):
                self.conv.weight[k, :, 0, 0] = torch.tensor(filters[name][0])
                self.conv.bias[k] = filters[name][1]
        self.register_buffer("weights", torch.tensor(weights))
        self.register_buffer("where", torch.ones(3, SIZE, SIZE))
        if where is not None:
            self.where[0] = where

    def forward(self, x):
        return (self.relu(self.conv(x)) * self.where).mean((2, 3)) * self.weights * 1000


def corner(size=10):
    where = torch.zeros(SIZE, SIZE)
    where[:size, :size] = 1
    return where


def verdict(verdicts, test, label="red"):
    table = verdicts.table
    return table[(table["test"] == test) & (table["label"] == label)].iloc[0]


@pytest.mark.parametrize(
    ("extra", "network", "test"),
    [
        ("stamp", Filters("stamp", (6, 1, 1)), "transplant"),
        ("stamp", Filters("stamp", (6, 1, 1)), "keep"),
        ("stamp", Filters("stamp", (6, 1, 1)), "cover"),
        ("corner", Filters("stamp", (6, 1, 1), corner()), "place"),
        ("corner", Filters("stamp", (6, 1, 1), corner()), "place_away"),
        ("frame", Filters("stamp", (6, 1, 1)), "place"),
        ("cast", Filters("magenta", (1, 1, 1)), "colour"),
        ("cast", Filters("magenta", (1, 1, 1)), "colour_away"),
        ("background", Filters("magenta", (1, 1, 1)), "swap"),
    ],
)
def test_a_network_that_looks_only_at_it_is_named_by_the_test_that_takes_or_gives_it(extra, network, test):
    verdicts = judge(network, pictures(extra), NAMES)
    row = verdict(verdicts, test)
    assert row["verdict"] == "shortcut", verdicts.table
    assert row["effect"] - row["control"] > 0.5 and row["low"] > 0.1
    assert set(verdicts.shortcuts["label"]) == {"red"}, "another class is accused"


@pytest.mark.parametrize("extra", ["stamp", "corner", "frame"])
def test_a_network_that_looks_only_at_the_object_is_clear_whatever_lies_beside_it(extra):
    verdicts = judge(Filters("red"), pictures(extra), NAMES)
    assert verdicts.shortcuts.empty, verdicts.shortcuts
    for test in ("transplant", "keep", "place", "colour", "blur", "swap"):
        assert verdict(verdicts, test)["verdict"] == "clear", verdicts.table
