"""The registry of findings, and what a kind may need of a run."""

from __future__ import annotations

from collections.abc import Callable

from .panel import Panel
from .rows import Hits, Kind

__all__ = ["answers", "finding", "frames", "kinds", "masks", "nothing", "training"]

kinds: dict[str, Kind] = {}

Look = Callable[[Panel], Hits]


# --- what a kind needs


def nothing(panel: Panel) -> str:
    return ""


def training(panel: Panel) -> str:
    return "" if panel.trained else "no frame after training"


def answers(panel: Panel) -> str:
    return training(panel) or ("" if panel.last["correct"].notna().any() else "no labels")


def masks(panel: Panel) -> str:
    return answers(panel) or ("" if panel.last["mask_share"].notna().any() else "no masks")


def frames(panel: Panel) -> str:
    fewest = panel.thresholds.late_frames
    return training(panel) or ("" if len(panel.frames) >= fewest else f"fewer than {fewest} frames")


def finding(
    name: str, low: float, high: float, title: str, lacks: Callable[[Panel], str] = training
) -> Callable[[Look], Look]:
    def register(look: Look) -> Look:
        kinds[name] = Kind(name, low, high, title, look, lacks)
        return look

    return register
