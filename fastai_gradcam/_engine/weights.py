"""Methods without gradients: what a score becomes when the image, or a layer's activations, are changed.

`Probe` answers a method's questions in batches. The methods themselves are in `methods.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._net.nested import map_tensors
from .._net.shadow import shadow
from .._search.space import Reshape
from .look import Look, Scene
from .replay import Replay

__all__ = ["Probe", "weigh"]

# Variants of one image in a pass: enough to fill a few cores or a GPU, few enough for the memory of a small one.
_BATCH = 32
_SECONDS_BEFORE_A_BAR = 5
_COARSE = (torch.float16, torch.bfloat16)


@dataclass
class Probe:
    """The K scores of one image after it, or its activations at the layer, are changed.

    `base`: its scores `(K,)` as it is. `score`: from the output for B variants of it to `(K, B)`.
    """

    replay: Replay
    index: int
    base: Tensor
    score: Callable[[Any], Tensor]
    to_space: Reshape
    advance: Callable[[int], None]

    @property
    def x(self) -> Tensor:
        "The image `(C, *space)`."
        return self.replay.inputs.x[self.index]

    def inputs(self, make: Callable[[Tensor], Tensor], channels: Tensor) -> Tensor:
        "Scores `(K, len(channels))` of the images `make(some of the channels)`, `(B, C, *space)`."
        return self._batched(lambda part: self.replay.of_images(make(part), self.index), channels)

    def without(self, channels: Tensor) -> Tensor:
        "Scores `(K, len(channels))` with each of `channels` of the layer set to zero, one at a time."
        if not len(channels):
            return self.base.new_zeros(len(self.base), 0)
        kept, cells = self.replay.activations[self.index], self.replay.cells(self.to_space)

        def ablated(part: Tensor) -> Any:
            flat = kept.flatten().repeat(len(part), 1)
            return self.replay(flat.scatter_(1, cells[part], 0).unflatten(1, kept.shape), self.index)

        return self._batched(ablated, channels)

    def _batched(self, run: Callable[[Tensor], Any], channels: Tensor) -> Tensor:
        found = []
        for part in channels.split(_BATCH):
            found.append(self.score(run(part)).float())
            self.advance(len(part))
        return torch.cat(found, 1)


def weigh(scene: Scene, weights: Callable[[Tensor, Probe], Tensor]) -> Look:
    """A look without gradients, whose `gradients` are the weights `(N, C, 1, …)` of the channels.

    A network in half precision or under autocast keeps its own output, but scores are computed in float32: the effect
    of one channel can be below half precision.
    """
    kind, x = scene.inputs.x.device.type, scene.inputs.x
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    own = None
    with torch.no_grad():
        if autocast or x.dtype in _COARSE or any(p.dtype in _COARSE for p in scene.net.parameters()):
            own = map_tensors(Tensor.detach, scene.inputs.run(scene.net))
            try:
                with torch.autocast(kind, enabled=False):
                    return _weigh(_in_float32(scene), weights, own)
            except RuntimeError:
                pass  # a network that brings its activations to a type of its own
        return _weigh(scene, weights, own)


def _in_float32(scene: Scene) -> Scene:
    net = shadow(scene.net)
    for t in [*net.parameters(), *net.buffers()]:
        if t.dtype in _COARSE:
            t.data = t.data.float()
    inputs = scene.inputs.map(lambda t: t.float() if t.dtype in _COARSE else t)
    return replace(scene, net=net, inputs=inputs, spots=[scene.spot_in(net, spot) for spot in scene.spots])


def _weigh(scene: Scene, weights: Callable[[Tensor, Probe], Tensor], own: Any) -> Look:
    replays = [Replay(scene.net, scene.inputs, spot) for spot in scene.spots]
    output = replays[0].output if own is None else own
    _, classes = scene.question.scores(output)
    asked = scene.question.settled(output)
    look = Look(output, classes, [], [])
    for replay in replays:
        base = torch.stack(asked.scores(replay.output)[0], 1).float()  # (N, K)
        to_space = scene.space(replay.spot, replay.activations)
        A = to_space(replay.activations).float()
        with _progress(len(A) * A.shape[1]) as advance:
            each = [
                weights(A[i], Probe(replay, i, base[i], asked.of_variants(replay.output, i), to_space, advance))
                for i in range(len(A))
            ]
        look.activations.append(A)
        look.gradients.append(list(torch.stack(each, 1).unsqueeze(-1).unflatten(-1, [1] * (A.ndim - 2))))
    return look


@contextmanager
def _progress(passes: int) -> Iterator[Callable[[int], None]]:
    "A progress bar, once it is clear that it takes long. Yields a function of the number of passes just made."
    start, done, bar = time.monotonic(), 0, None

    def advance(count: int) -> None:
        nonlocal done, bar
        done += count
        if bar is None and (time.monotonic() - start) / done * passes > _SECONDS_BEFORE_A_BAR:
            from fastprogress.fastprogress import progress_bar

            bar = progress_bar(range(passes), leave=False)
            bar.update(0)
        if bar is not None:
            bar.update(min(done, passes))

    yield advance
    if bar is not None and done < passes:
        bar.update(passes)
