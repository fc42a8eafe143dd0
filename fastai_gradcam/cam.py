"""The engine: `gradcam(model, x)` makes class activation maps from one forward pass and one short backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._engine.look import Look, Scene, look
from ._engine.method import MapFunction, Method
from ._engine.question import Question
from ._engine.views import noisy_copies, question_of_view, unchanged_view, views
from ._engine.weights import weigh
from ._errors import GradCAMTypeError
from ._net.endings import Endings
from ._net.guard import undisturbed, without_checkpoints
from ._net.inputs import Inputs, inputs_of
from ._net.layers import Layer, Spot, named_layers
from ._net.shadow import shadow
from ._net.subject import named_subject, saying_why
from ._search.default import default_spot
from ._search.space import Reshape
from .methods import resolve_method
from .targets import Contrast, Segment, Target, as_question

__all__ = ["CAMs", "explain", "gradcam"]


@dataclass
class CAMs:
    """The class activation maps of a batch.

    `maps[i]`: the maps of `layers[i]`, raw (in units of the score, not normalised) and at the layer's own resolution,
    float32 `(N, *space)`, or `(N, K, *space)` for `(N, K)` targets. `layers`: dotted names. `output`: the model's
    detached output. `target`: the LongTensor `(N,)` or `(N, K)` explained, `None` for a callable.
    `negative_share[i]`: share of the absolute mass of each map that was negative before the method's ReLU, 0…1,
    `(N,)` or `(N, K)`, NaN for a map without mass. `notes`: caveats about these maps, usually none.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> from fastai_gradcam import gradcam
    >>> cams = gradcam(model, torch.randn(2, 3, 9, 9), target=torch.tensor([[0, 3], [0, 3]]))
    >>> cams.layers, cams.maps[0].shape, cams.target.tolist()
    (['0'], torch.Size([2, 2, 4, 4]), [[0, 3], [0, 3]])
    """

    maps: list[Tensor]
    layers: list[str]
    output: Any
    target: Tensor | None
    negative_share: list[Tensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
      With `layer=` a module that it calls, `model` may be a function.
    - `target`: `None` (each image's predicted class), an int, a LongTensor `(N,)` (one class per image) or `(N, K)`
      (K classes per image), or a callable `output -> (N,)` scores. Logits are explained, never probabilities.
    - `method`: a name in `fastai_gradcam.methods.methods`, which may end in `+noise`, `+aug` or `+eigen`; a method made
      by `smoothed`, `augmented` or `eigen`; or a callable `(activations, gradients) -> maps` on `(N, C, *space)`.
    - `reshape`: a callable from the layer's output to `(N, C, *space)`, where the default reads it wrongly.
    - `input`: the position or key of the input that the map belongs to. A layer that runs once per input is explained
      in that run.

    Costs one forward pass and, per class, one backward pass from the score to the earliest layer asked for.
    `scorecam` and `ablationcam` need up to one forward pass per channel, and a backward pass only to find the default
    layer. It also works inside `no_grad` and with a frozen body. Raises `GradCAMError` for a layer, target, method or
    input that does not exist or does not fit, and for a model that cannot be copied.

    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391; the other methods name theirs.

    >>> import torch
    >>> from fastai_gradcam import gradcam
    >>> from torch import nn
    >>> body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
    >>> model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> cams = gradcam(model, torch.randn(2, 3, 33, 33), target=1)
    >>> cams.layers, cams.maps[0].shape
    (['0'], torch.Size([2, 16, 16]))
    """
    net, names = named_subject(model, layer)
    with undisturbed(), saying_why(net):
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
    """`gradcam` for a caller that holds a shadow of the model (`_net.shadow`) and is inside
    `_net.guard.undisturbed`.
    """
    how = resolve_method(method)
    if reshape is not None and not callable(reshape):
        raise GradCAMTypeError(f"reshape must be a callable from a layer's output to (N, C, *space), got {reshape!r}.")
    with torch.inference_mode(False), without_checkpoints(), Endings(net) as endings:
        inputs = inputs_of(x, input)
        question = as_question(target, inputs.n, inputs.dims)
        if not callable(target) or isinstance(target, (Contrast, Segment)):
            question = question.before(endings.undone)
        scene = Scene(net, inputs, question, reshape)
        if layer is None:
            scene, seen, notes = _at_the_default_layer(scene, target)
        else:
            spots = [Spot(name, module) for name, module in named_layers(net, layer)]
            scene, seen, notes = scene.at(spots), None, []
        seen = _see(scene, how) if seen is None or how.weigh else seen
        signed = _averaged_over_views(scene, how, seen)
        notes += [endings.note] * bool(endings.note)
    several = seen.classes is not None and seen.classes.ndim == 2
    made = [torch.stack(each, 1) if several else each[0] for each in signed]
    negative = [_negative_share(m, 2 if several else 1) for m in made]
    maps = [m.relu() if how.relu else m for m in made]
    return CAMs(maps, [s.name for s in scene.spots], seen.output, seen.classes, negative, notes)


def _see(scene: Scene, how: Method) -> Look:
    return weigh(scene, how.weigh) if how.weigh else look(scene)


def _at_the_default_layer(scene: Scene, target: Target) -> tuple[Scene, Look | None, list[str]]:
    "The scene there, a look if one was needed to find out, and notes."

    def at(few: Inputs, of: Any) -> tuple[Scene, list[str]]:
        classes = () if callable(of) else of
        total = partial(scene.question.total, classes=classes)
        spot, note = default_spot(scene.net, few, total, scene.reshape, of)
        return scene.at([spot]), [note] * bool(note)

    if callable(target):  # it may hold something for each image of the batch
        there, notes = at(scene.inputs, target)
        return there, None, notes
    there, notes = at(scene.inputs.first(2), ())
    seen = look(there, needed=False)
    if all(bool(G.any()) for Gs in seen.gradients for G in Gs) or seen.classes is None:
        return there, seen, notes
    # Classes may have branches of their own.
    other, more = at(scene.inputs.first(2), tuple(sorted(set(seen.classes.flatten().tolist()))))
    return (there, seen, notes) if other.spots == there.spots else (other, None, more)


def _averaged_over_views(scene: Scene, how: Method, seen: Look) -> list[list[Tensor]]:
    "The maps of each layer and score before the ReLU, averaged over the views that the method asks for."
    if not how.augment and not how.noise:
        return _signed(how, scene, [seen])
    asked, x = scene.question.settled(seen.output), scene.inputs.x
    made: list[list[list[Tensor]]] = []
    for view, back in views(x) if how.augment else [(x, unchanged_view)]:
        question = question_of_view(asked, back, x.shape[2:])

        def see(x: Tensor, question: Question = question) -> Look:
            return _see(replace(scene, question=question, inputs=scene.inputs.with_x(x)), how)

        copies = [see(noisy) for noisy in noisy_copies(view, *how.noise)] if how.noise else []
        signed = _signed(how, scene, [see(view) if made else seen, *copies])
        made.append([[back(m) for m in layer] for layer in signed])
    return [[torch.stack(same).mean(0) for same in zip(*layer, strict=True)] for layer in zip(*made, strict=True)]


def _signed(how: Method, scene: Scene, looks: list[Look]) -> list[list[Tensor]]:
    "From the first look's activations, and its gradients or those of the noisy copies that follow it."
    gradients = [seen.gradients for seen in looks[1:] or looks]
    return [
        [how.checked(A, list(Gs), spot.name) for Gs in zip(*(copy[i] for copy in gradients), strict=True)]
        for i, (spot, A) in enumerate(zip(scene.spots, looks[0].activations, strict=True))
    ]


def _negative_share(signed: Tensor, lead: int) -> Tensor:
    flat = signed.flatten(lead)
    mass = flat.abs().sum(-1)
    return (-flat).relu().sum(-1) / torch.where(mass > 0, mass, torch.nan)
