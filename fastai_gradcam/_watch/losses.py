"""How a loss function reads a model's output: found from its kind, or by asking it about made-up outputs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .nested import mapped

__all__ = [
    "IDENTITY",
    "LOG",
    "SIGMOID",
    "SOFTMAX",
    "VALUE",
    "activated",
    "activation_of",
    "asked",
    "kind_of",
    "moved",
    "unwrapped",
    "weights",
]

# The activations that turn the output into probabilities; `VALUE`: nothing does, the output is a number.
SOFTMAX, SIGMOID, LOG, IDENTITY, VALUE = "softmax", "sigmoid", "log", "identity", "value"

_KNOWN = {
    SOFTMAX: (nn.CrossEntropyLoss, F.cross_entropy),
    LOG: (nn.NLLLoss, F.nll_loss),
    IDENTITY: (nn.BCELoss, F.binary_cross_entropy),
    SIGMOID: (
        nn.BCEWithLogitsLoss,
        F.binary_cross_entropy_with_logits,
        nn.MultiLabelSoftMarginLoss,
        F.multilabel_soft_margin_loss,
    ),
    VALUE: (
        *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.GaussianNLLLoss, nn.PoissonNLLLoss),
        *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.gaussian_nll_loss, F.poisson_nll_loss),
    ),
}


def kind_of(y: Tensor, loss: Any, named: bool = False) -> str:
    """The kind of a target from one image's `y` and the loss: `category`, `labels` or `regression`.

    `named`: there are names of classes.
    """
    how = activation_of(loss) if loss is not None else None
    if how is None and callable(loss):
        many = (max(3, y.numel()) if y.ndim == 1 else 3,)
        how = asked(loss, lambda scores: scores, [many]) or asked(loss, lambda scores: scores, [(1,)])
        how = how or asked(loss, lambda scores: scores[:, 0], [(1,)])
    if how == VALUE:
        return "regression"
    if not y.is_floating_point():
        return "category"
    if y.ndim == 0 or y.numel() == 1:
        return "regression" if how is None and not named else "category"
    if y.ndim > 1:
        return "category" if named else "regression"
    if how in (SIGMOID, IDENTITY):
        return "labels"
    return "category" if how is not None else "labels" if named else "regression"


def unwrapped(loss: Any) -> Any:
    "The loss inside a `partial`, or inside fastai's flattening of it."
    while True:
        if isinstance(loss, functools.partial) or (not isinstance(loss, nn.Module) and hasattr(loss, "func")):
            loss = loss.func
        else:
            return loss


def activation_of(loss: Any) -> str | Callable[[Tensor], Tensor] | None:
    """The activation that turns an output into probabilities, as the kind of `loss` says; `None` where it does not.

    One of the constants of this module, or the loss's own `activation`.
    """
    own = None if isinstance(loss, type) else _own(loss)
    if own is not None:
        return own
    inner = unwrapped(loss)
    for activation, kinds in _KNOWN.items():
        for kind in kinds:
            if inner is kind or (isinstance(kind, type) and isinstance(inner, kind)):
                return activation
    return None


def _own(loss: Any) -> str | Callable[[Tensor], Tensor] | None:
    "The method `activation` of a loss in fastai's manner, where it does anything."
    own = getattr(loss, "activation", None)
    if not callable(own):
        return None
    drawn = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    try:
        made = own(drawn.clone())
        if torch.equal(made, drawn):
            return None
        for name, known in ((SOFTMAX, drawn.softmax(1)), (SIGMOID, drawn.sigmoid())):
            if torch.allclose(made, known):
                return name
    except Exception:
        # It may take another kind of output.
        return own
    return own


def asked(loss: Any, place: Callable[[Tensor], Any], ys: Sequence[tuple[int, ...]], at: int = 0) -> str | None:
    """The activation that `loss` applies to an output before it compares, found by its gradient at made-up outputs.

    `place(scores)`: the whole output with `scores` in it. `ys[i]`: `(n,)` for a target of n classes, `()` for a number;
    `at`: the one that belongs to `scores`.
    """
    n = max(1, *ys[at]) if ys[at] else 1
    rng = torch.Generator().manual_seed(0)
    draw = torch.rand(4, n, generator=rng) * 0.8 + 0.1
    for scores, test in ((torch.logit(draw), _of_logits), (draw / draw.sum(1, keepdim=True), _of_probabilities)):
        for target in _targets(n, rng):
            found = _gradient(loss, place, scores if n > 1 else draw, target, ys, at)
            if found is None:
                continue
            activation = test(scores if n > 1 else draw, target, found)
            if activation is not None:
                return activation
    return None


def _targets(n: int, rng: torch.Generator) -> list[Tensor]:
    "A class per row, a row of labels, and numbers."
    classes = torch.arange(4) % n
    rows = (torch.rand(4, n, generator=rng) > 0.5).float()
    return [classes, rows, rows[:, 0]] if n > 1 else [rows, rows[:, 0]]


def _gradient(
    loss: Any, place: Callable[[Tensor], Any], scores: Tensor, y: Tensor, ys: Sequence[tuple[int, ...]], at: int
) -> Tensor | None:
    others = [torch.zeros(4, dtype=torch.long) if shape else torch.zeros(4) for shape in ys]
    others[at] = y
    # A target that does not fit may be warned of, which is nobody's concern.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaf = scores.clone().requires_grad_()
        try:
            value = loss(place(leaf), *others)
            (grad,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        except Exception:
            return None
    return None if grad is None or not bool(grad.isfinite().all()) or not bool(grad.any()) else grad


def _same(a: Tensor, b: Tensor) -> bool:
    "Whether two gradients are the same up to a positive factor."
    scale = (a * b).sum() / (b * b).sum()
    return bool(scale > 0) and torch.allclose(a, b * scale, rtol=1e-3, atol=1e-5 * float(a.abs().max()))


def _of_logits(o: Tensor, y: Tensor, grad: Tensor) -> str | None:
    rows = (
        F.one_hot(y, o.shape[1]).float()
        if not y.is_floating_point()
        else y.view_as(o)
        if y.numel() == o.numel()
        else None
    )
    if rows is None:
        return None
    if _same(grad, o.sigmoid() - rows):
        return SIGMOID
    if o.shape[1] > 1 and _same(grad, o.softmax(1) * rows.sum(1, keepdim=True) - rows):
        return SOFTMAX
    if not y.is_floating_point() and _same(grad, -rows):
        return LOG
    if y.is_floating_point() and (_same(grad, o - rows) or _same(grad, (o - rows).sign())):
        return VALUE
    # Label smoothing, focal loss: a constant added to all scores changes nothing, and all scores count, each by itself.
    others = grad[rows == 0] if not y.is_floating_point() else grad.new_zeros(0)
    level = grad.sum(1).abs().max() < 1e-5 * grad.abs().max() + 1e-7
    return SOFTMAX if o.shape[1] > 2 and level and len(others) > 1 and len(others.unique()) == len(others) else None


def _of_probabilities(p: Tensor, y: Tensor, grad: Tensor) -> str | None:
    rows = (
        F.one_hot(y, p.shape[1]).float()
        if not y.is_floating_point()
        else y.view_as(p)
        if y.numel() == p.numel()
        else None
    )
    if rows is None:
        return None
    return IDENTITY if _same(grad, (p - rows) / (p * (1 - p))) or _same(grad, -rows / p) else None


def weights(loss: Any, output: Any, ys: Sequence[Tensor], among: Sequence[Tensor]) -> list[float]:
    """How much `loss(output, *ys)` depends on each of the tensors `among` in `output`, were they equal.

    None where it cannot be asked.
    """
    return [float(g.norm()) for g in _gradients(loss, output, ys, among)]


def moved(loss: Any, output: Any, ys: Sequence[Tensor], at: int, among: Sequence[Tensor]) -> list[Tensor]:
    """How far the gradient of `loss(output, *ys)` at each of the tensors `among` depends on target `at`.

    None where it cannot be asked.
    """
    others = [y + 1 if i == at else y for i, y in enumerate(ys)]
    before, after = _gradients(loss, output, ys, among), _gradients(loss, output, others, among)
    return [(a - b).abs() for a, b in zip(before, after, strict=True)] if before and after else []


def _gradients(loss: Any, output: Any, ys: Sequence[Tensor], among: Sequence[Tensor]) -> list[Tensor]:
    "Gradients of the loss with respect to the tensors `among`, each drawn anew, those of one shape alike."
    rng = torch.Generator().manual_seed(0)
    draws = {t.shape: torch.rand(t.shape, generator=rng) * 0.8 + 0.1 for t in among}
    leaves = {id(t): draws[t.shape].clone().requires_grad_() for t in among}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = loss(mapped(lambda t: leaves.get(id(t), t.detach().cpu()), output), *ys)
            grads = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        except Exception:
            return []
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves.values(), strict=True)]


def activated(scores: Tensor, how: Any, one_column: bool, category: bool) -> Tensor | None:
    "Probabilities from scores `(N, C, ...)` by an activation that is a constant of this module, or callable."
    if how == IDENTITY:
        return scores
    if how == LOG:
        return scores.exp()
    if how == SIGMOID or (one_column and how not in (None, VALUE)):
        return scores.sigmoid()
    if how == SOFTMAX:
        return scores.softmax(1)
    if callable(how):
        return how(scores)
    return _as_they_are(scores) if category and not one_column else None


def _as_they_are(scores: Tensor) -> Tensor | None:
    "Scores that are probabilities, or their logarithms, by their values: they add up to 1 for each image."
    if bool((scores >= 0).all()) and torch.allclose(scores.sum(1), scores.new_ones(()), atol=1e-3):
        return scores
    exp = scores.exp()
    return exp if bool((scores <= 0).all()) and torch.allclose(exp.sum(1), exp.new_ones(()), atol=1e-3) else None
