"""The predicted classes and labels, as a loss in fastai's manner decodes probabilities itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Decodes", "class_of", "labels_of"]

Decodes = Callable[[Tensor], Tensor]


def class_of(probs: Tensor, decodes: Decodes | None, lone: bool) -> Tensor:
    "The class of each row of `(N, C)`, by default the most probable. `lone`: the model gives that of the second alone."
    found = _decoded(probs[:, 1:] if lone else probs, decodes)
    if found is None or found.numel() != len(probs) or not bool(((found >= 0) & (found < probs.shape[1])).all()):
        return probs.argmax(1)
    return found.reshape(-1).long()


def labels_of(probs: Tensor, decodes: Decodes | None) -> Tensor:
    "Which labels each row has, as booleans in the shape of `probs`; by default those above a half."
    found = _decoded(probs, decodes)
    return probs > 0.5 if found is None or found.shape != probs.shape else found.bool()


def _decoded(probs: Tensor, decodes: Decodes | None) -> Tensor | None:
    "`None` from a loss that leaves probabilities as they are, or cannot decode them; it is given a copy on the CPU."
    given = probs.detach().cpu()
    try:
        found = None if decodes is None else torch.as_tensor(decodes(given.clone())).as_subclass(Tensor)
    except Exception:
        return None
    if found is None or (found.is_floating_point() and (torch.equal(found, given) or bool((found % 1 != 0).any()))):
        return None
    return found.to(probs.device)
