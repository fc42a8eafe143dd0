"""The engine: `gradcam(model, x)` makes class activation maps from one forward pass and one short backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._engine.default import default_spot, space_of
from ._engine.guard import undisturbed, without_checkpoints
from ._engine.inputs import Inputs, inputs_of
from ._engine.layers import Layer, named_layers, unwrap
from ._engine.look import Look, Spot, look
from ._engine.method import MapFunction, Method
from ._engine.question import Question
from ._engine.shadow import shadow
from ._engine.space import Reshape
from ._engine.views import noisy_copies, question_of_view, unchanged_view, views
from ._engine.weights import weigh
from ._errors import GradCAMTypeError
from .methods import resolve_method
from .targets import Target, as_question

__all__ = ["CAMs", "explain", "gradcam"]


@dataclass
class CAMs:
    """The class activation maps of a batch.

    `maps[i]`: the maps of `layers[i]`, raw (in units of the score, not normalised) and at the layer's own resolution,
    float32 `(N, *space)`, or `(N, K, *space)` for `(N, K)` targets. `layers`: dotted names. `output`: the model's
    detached output. `target`: the LongTensor `(N,)` or `(N, K)` explained, `None` for a callable.
    `negative_share[i]`: share of the absolute mass of each map that was negative before the method's ReLU, 0…1,
    `(N,)` or `(N, K)`, NaN for a map without mass.
    """

    maps: list[Tensor]
    layers: list[str]
    output: Any
    target: Tensor | None
    negative_share: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.maps)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.maps)


def gradcam(
    model: nn.Module,
    x: Any,
    *,
    layer: Layer = None,
    target: Target = None,
    method: str | Method | MapFunction = "gradcam",
    reshape: Reshape | None = None,
    input: Any = 0,
) -> CAMs:
    """Class activation maps of `x`. Nothing about `model` changes, and any number of threads may ask at once.

    - `x`: `(N, C, *space)` on the model's device, as the model takes it (normalised); or a tuple of inputs, called as
      `model(*x)`, or a dict, called as `model(**x)`.
    - `layer`: `None` (the last with space that takes part in the score), a module, a dotted name, or a list of these.
    - `target`: `None` (each image's predicted class), an int, a LongTensor `(N,)` (one class per image) or `(N, K)`
      (K classes per image), or a callable `output -> (N,)` scores. Logits are explained, never probabilities.
    - `method`: a name in `fastai_gradcam.methods.methods`, which may end in `+noise`, `+aug` or `+eigen`; a method made
      by `smoothed`, `augmented` or `eigen`; or a callable `(activations, gradients) -> maps` on `(N, C, *space)`.
    - `reshape`: a callable from the layer's output to `(N, C, *space)`, where the default reads it wrongly.
    - `input`: the position or key of the input that the map belongs to. A layer that runs once per input is explained
      in that run.

    Costs one forward pass and, per class, one backward pass from the score to the earliest layer asked for.
    `scorecam` and `ablationcam` need up to one forward pass per channel, and a backward pass only to find the default
    layer. An outer `no_grad` or a frozen body is no obstacle. Raises `GradCAMError` for a layer, target, method or
    input that does not exist or does not fit, and for a model that cannot be copied.

    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391; the other methods name theirs.

    >>> import torch
    >>> from torch import nn
    >>> body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
    >>> model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> cams = gradcam(model, torch.randn(2, 3, 33, 33), target=1)
    >>> cams.layers, cams.maps[0].shape
    (['0.0'], torch.Size([2, 16, 16]))
    """
    if not isinstance(model, nn.Module):
        raise GradCAMTypeError(f"model must be an nn.Module, with layers to listen to, got {type(model).__name__}.")
    net = unwrap(model)
    names = None if layer is None else [name for name, _ in named_layers(net, layer)]
    with undisturbed():
        return explain(shadow(net), x, layer=names, target=target, method=method, reshape=reshape, input=input)


def explain(
    net: nn.Module,
    x: Any,
    *,
    layer: Layer = None,
    target: Target = None,
    method: str | Method | MapFunction = "gradcam",
    reshape: Reshape | None = None,
    input: Any = 0,
) -> CAMs:
    "`gradcam` for a caller that holds a shadow of the model (`_engine.shadow`) and is inside `_engine.guard.undisturbed`."
    how = resolve_method(method)
    if reshape is not None and not callable(reshape):
        raise GradCAMTypeError(f"reshape must be a callable from a layer's output to (N, C, *space), got {reshape!r}.")
    with torch.inference_mode(False), without_checkpoints():
        inputs = inputs_of(x, input)
        question = as_question(target, inputs.n, inputs.dims)

        def space(spot: Spot, output: Tensor) -> Reshape:
            return space_of(net, spot, output, inputs, reshape)

        def see(inputs: Inputs, question: Question) -> Look:
            if how.weigh:
                return weigh(net, inputs, spots, question, how.weigh, space)
            return look(net, inputs, spots, question, space)

        first = None
        if layer is not None:
            spots = [Spot(name, module) for name, module in named_layers(net, layer)]
        else:
            spots, first = _default(net, inputs, question, target, reshape, space)
        first = see(inputs, question) if first is None or how.weigh else first
        signed = _averaged_over_views(inputs, question, how, first, see, [s.name for s in spots])
    several = first.classes is not None and first.classes.ndim == 2
    made = [torch.stack(each, 1) if several else each[0] for each in signed]
    return CAMs(
        [m.relu() if how.relu else m for m in made],
        [s.name for s in spots],
        first.output,
        first.classes,
        [_negative_share(m, 2 if several else 1) for m in made],
    )


def _default(
    net: nn.Module, inputs: Inputs, question: Question, target: Target, reshape: Reshape | None, space: Any
) -> tuple[list[Spot], Look | None]:
    "The default layer, and a look at it if every score has a gradient there."
    if callable(target):
        return [default_spot(net, inputs, question, reshape, asker=target)], None
    few = inputs.first(2)  # enough to tell; a callable may hold something for each image of the batch
    spots = [default_spot(net, few, question, reshape)]
    seen = look(net, inputs, spots, question, space, needed=False)
    if all(bool(G.any()) for Gs in seen.gradients for G in Gs) or seen.classes is None:
        return spots, seen
    # Classes may have branches of their own.
    classes = sorted(set(seen.classes.flatten().tolist()))
    others = [default_spot(net, few, question, reshape, classes)]
    return (spots, seen) if others == spots else (others, None)


def _averaged_over_views(
    inputs: Inputs, question: Question, how: Method, first: Look, see: Callable[..., Look], names: Sequence[str]
) -> list[list[Tensor]]:
    "The maps of each layer and score before the ReLU, averaged over the views that the method asks for."
    if not how.augment and not how.noise:
        return _signed(how, [first], names)
    asked = question.settled(first.output)
    views_signed: list[list[list[Tensor]]] = []
    for view, back in views(inputs.x) if how.augment else [(inputs.x, unchanged_view)]:
        of_view, changed = question_of_view(asked, back, inputs.x.shape[2:]), inputs.with_x(view)
        seen = see(changed, of_view) if views_signed else first
        copies = [see(inputs.with_x(noisy), of_view) for noisy in noisy_copies(view, *how.noise)] if how.noise else []
        signed = _signed(how, [seen, *copies], names)
        views_signed.append([[back(m) for m in layer] for layer in signed])
    return [
        [torch.stack(same).mean(0) for same in zip(*layer, strict=True)] for layer in zip(*views_signed, strict=True)
    ]


def _signed(how: Method, looks: list[Look], names: Sequence[str]) -> list[list[Tensor]]:
    "From a look, and from the gradients of noisy copies in place of its own if there are any."
    gradients = [seen.gradients for seen in looks[1:] or looks]
    return [
        [how.checked(A, list(Gs), name) for Gs in zip(*(copy[i] for copy in gradients), strict=True)]
        for i, (name, A) in enumerate(zip(names, looks[0].activations, strict=True))
    ]


def _negative_share(signed: Tensor, lead: int) -> Tensor:
    flat = signed.flatten(lead)
    mass = flat.abs().sum(-1)
    return (-flat).relu().sum(-1) / torch.where(mass > 0, mass, torch.nan)
