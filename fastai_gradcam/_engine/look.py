"""One look at a model: its output, what layers gave, and the gradients of the scores there.

Autograd is restarted at the layer: the model runs under `no_grad` until the first layer asked for has run, so nothing
before it is kept in memory, and no frozen body or outer `no_grad` matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError
from .._net.inputs import Inputs
from .._net.layers import Spot
from .._net.nested import map_tensors, replaced, tensors
from .._net.shadow import allow_gradients, shadow
from .._search.default import space_of
from .._search.space import Reshape
from .question import Question

__all__ = ["Look", "Restart", "Scene", "look", "not_reached"]


@dataclass(frozen=True)
class Scene:
    "The subject of a look: a shadow, its input, the layers, and the question to its output."

    net: nn.Module
    inputs: Inputs
    question: Question
    reshape: Reshape | None = None
    spots: Sequence[Spot] = ()

    def space(self, spot: Spot, output: Tensor) -> Reshape:
        return space_of(self.net, spot, output, self.inputs, self.reshape)

    def at(self, spots: Sequence[Spot]) -> Scene:
        "The same at these layers. One that runs once per input is looked at in the run for the input explained."
        inputs, images = self.inputs, self.inputs.images
        if len(images) > 1:
            runs = Counter[str]()
            copy = shadow(self.net)
            for name in {spot.name for spot in spots}:
                copy.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.update([name]))
            with torch.no_grad():
                inputs.run(copy)
            run = images.index(inputs.at) if inputs.at in images else None
            spots = [replace(s, run=run if runs[s.name] == len(images) else None) for s in spots]
        return replace(self, spots=spots)

    @staticmethod
    def spot_in(net: nn.Module, spot: Spot) -> Spot:
        "The same place in a copy."
        return replace(spot, module=net.get_submodule(spot.name))


@dataclass(frozen=True)
class Look:
    """The result of one look: `activations[i]` of layer i, `(N, C, *space)` in float32.

    `gradients[i][k]`: the gradient of score k at layer i, or what takes its place (a channel's weight), of a shape
    that broadcasts with the activations. `classes`: `(N,)` or `(N, K)`, `None` for a callable target.
    """

    output: Any
    classes: Tensor | None
    activations: list[Tensor]
    gradients: list[list[Tensor]]


class Restart:
    """Context manager that restarts autograd at `spots` and keeps what flows out of them.

    `outputs[i]` is a tensor that the score can be differentiated by: a leaf, or a node of the graph that an earlier
    spot began; `None` if the module did not run.
    """

    def __init__(self, spots: Sequence[Spot]) -> None:
        self.spots = spots
        self.outputs: list[Tensor | None] = [None] * len(spots)
        self._runs = [0] * len(spots)

    def __enter__(self) -> Restart:
        self._handles = [s.module.register_forward_hook(self._hook(i, s)) for i, s in enumerate(self.spots)]
        return self

    def _hook(self, i: int, spot: Spot) -> Callable[[nn.Module, Any, Any], Any]:
        def restart(module: nn.Module, args: Any, output: Any) -> Any:
            run, self._runs[i] = self._runs[i], self._runs[i] + 1
            found = tensors(output)
            if len(found) <= spot.entry or spot.run not in (None, run):
                return None
            torch.set_grad_enabled(True)
            tensor = found[spot.entry]
            kept = self.outputs[i] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            # The network goes on with a clone: an in-place neighbour (ReLU, `out += identity`) would otherwise
            # overwrite the activation that we keep, and the map would mix one tensor with another's gradient.
            return replaced(output, spot.entry, kept.clone())

        return restart

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()


def look(scene: Scene, needed: bool = True) -> Look:
    """A look by gradients: one forward pass, and one backward pass per score.

    `needed`: whether a layer that a score does not depend on is an error, or has a gradient of zero.
    """
    # A network that turns gradients off by itself (a body under `no_grad`), or whose fast path skips its modules,
    # hides the layer from the first try; the second runs with gradients on throughout.
    for grad in (False, True):
        allow_gradients(scene.net, grad)
        with torch.set_grad_enabled(grad), Restart(scene.spots) as restart:
            output = scene.inputs.run(scene.net)
            scores, classes = scene.question.scores(output)
        outputs = [t for t in restart.outputs if t is not None]
        if len(outputs) == len(scene.spots) and all(s.requires_grad for s in scores):
            break
    for spot, t in zip(scene.spots, restart.outputs, strict=True):
        if t is None:
            raise not_reached(spot)
    to_space = [scene.space(spot, t.detach()) for spot, t in zip(scene.spots, outputs, strict=True)]
    gradients: list[list[Tensor]] = [[] for _ in scene.spots]
    for k, score in enumerate(scores):
        for i, g in enumerate(_gradients(score, outputs, keep_graph=k + 1 < len(scores))):
            if g is None and needed:
                raise GradCAMError(
                    f"The score does not depend on layer {scene.spots[i].name!r}: no gradient arrives there. Choose a "
                    "layer that the score is computed from."
                )
            gradients[i].append(to_space[i](torch.zeros_like(outputs[i]) if g is None else g).float())
    activations = [to(t.detach()).float() for to, t in zip(to_space, outputs, strict=True)]
    return Look(map_tensors(Tensor.detach, output), classes, activations, gradients)


def _gradients(score: Tensor, outputs: list[Tensor], keep_graph: bool) -> Sequence[Tensor | None]:
    if not score.requires_grad:
        return [None] * len(outputs)
    return torch.autograd.grad(score.sum(), outputs, retain_graph=keep_graph, allow_unused=True)


def not_reached(spot: Spot) -> GradCAMError:
    return GradCAMError(
        f"Layer {spot.name!r} ({type(spot.module).__name__}) gave no tensor in the forward pass: it was not run, or "
        "its output holds no floating-point tensor."
    )
