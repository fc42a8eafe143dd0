"""Methods without gradients: what a score becomes when the image, or a layer's activations, are changed.

`Probe` answers a method's questions in batches. The methods themselves are in `methods.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import Inputs
from .look import Look, Spot
from .method import WeightFunction
from .nested import map_tensors
from .question import Question
from .replay import Replay, record
from .shadow import shadow
from .space import Reshape

__all__ = ["Probe", "weigh"]

# Variants of one image in a pass: enough to fill a few cores or a GPU, few enough for the memory of a small one.
_BATCH = 32
_SECONDS_BEFORE_A_BAR = 5
_COARSE = (torch.float16, torch.bfloat16)


def weigh(
    net: nn.Module,
    inputs: Inputs,
    spots: Sequence[Spot],
    question: Question,
    weights: WeightFunction,
    space: Callable[[Spot, Tensor], Reshape],
) -> Look:
    """A look without gradients, whose `gradients` are the weights `(N, C, 1, …)` of the channels.

    A network in half precision or under autocast keeps its own output, but scores are computed in float32: the effect
    of one channel can be below half precision.
    """
    own = None
    with torch.no_grad(), ExitStack() as precision:
        finer = _finer(net, inputs, spots)
        if finer is None:
            seen = record(net, inputs, spots)
        else:
            own = map_tensors(Tensor.detach, inputs.run(net))
            precision.enter_context(torch.autocast(inputs.x.device.type, enabled=False))
            try:
                seen = record(*finer)
                net, inputs, spots = finer
            except RuntimeError:
                # A network that brings its activations to a type of its own.
                precision.close()
                seen = record(net, inputs, spots)
        output = seen.output if own is None else own
        _, classes = question.scores(output)
        asked = question.settled(output)
        base = torch.stack(asked.scores(seen.output)[0], 1).float()  # (N, K)
        made = [
            _of_layer(Replay(net, inputs, spot, seen, i), asked, base, weights, space) for i, spot in enumerate(spots)
        ]
    return Look(output, classes, [A for A, _ in made], [w for _, w in made])


def _of_layer(
    replay: Replay,
    asked: Question,
    base: Tensor,
    weights: WeightFunction,
    space: Callable[[Spot, Tensor], Reshape],
) -> tuple[Tensor, list[Tensor]]:
    "A layer's activations and its weights, one tensor per class."
    to_space = space(replay.spot, replay.activations)
    A = to_space(replay.activations).float()
    with _progress(len(A) * A.shape[1]) as bar:
        found = [
            weights(A[i], Probe(replay, i, base[i], asked.of_variants(replay.seen.output, i), to_space, bar))
            for i in range(len(A))
        ]
    return A, list(torch.stack(found, 1).unsqueeze(-1).unflatten(-1, [1] * (A.ndim - 2)))  # (K, N, C, 1, …)


def _finer(net: nn.Module, inputs: Inputs, spots: Sequence[Spot]) -> tuple[nn.Module, Inputs, Sequence[Spot]] | None:
    "The same in float32, `None` where nothing is coarser than that."
    kind = inputs.x.device.type
    coarse = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    coarse = coarse or inputs.x.dtype in _COARSE or any(p.dtype in _COARSE for p in net.parameters())
    if not coarse:
        return None
    net = shadow(net)
    for t in [*net.parameters(), *net.buffers()]:
        if t.dtype in _COARSE:
            t.data = t.data.float()
    spots = [replace(spot, module=net.get_submodule(spot.name)) for spot in spots]
    return net, inputs.map(lambda t: t.float() if t.dtype in _COARSE else t), spots


class Probe:
    """What the K scores of one image become when it, or its activations at the layer, are changed.

    `x`: the image `(C, *space)`. `base`: its scores `(K,)` as it is.
    """

    def __init__(
        self,
        replay: Replay,
        index: int,
        base: Tensor,
        score: Callable[[Any], Tensor],
        to_space: Reshape,
        bar: Callable[[int], None],
    ) -> None:
        self.x, self.base = replay.inputs.x[index], base
        self._replay, self._index, self._score, self._to_space, self._bar = replay, index, score, to_space, bar

    def inputs(self, make: Callable[[Tensor], Tensor], channels: Tensor) -> Tensor:
        "Scores `(K, len(channels))` of the images `make(some of the channels)`, `(B, C, *space)`."
        return self._batched(lambda part: self._replay.of_images(make(part), self._index), channels)

    def without(self, channels: Tensor) -> Tensor:
        "Scores `(K, len(channels))` with each of `channels` of the layer set to zero, one at a time."
        if not len(channels):
            return self.base.new_zeros(len(self.base), 0)
        kept = self._replay.activations[self._index]
        cells = self._replay.cells(self._to_space)

        def ablated(part: Tensor) -> Any:
            flat = kept.flatten().repeat(len(part), 1)
            return self._replay(flat.scatter_(1, cells[part], 0).unflatten(1, kept.shape), self._index)

        return self._batched(ablated, channels)

    def _batched(self, run: Callable[[Tensor], Any], channels: Tensor) -> Tensor:
        found = []
        for part in channels.split(_BATCH):
            found.append(self._score(run(part)).float())
            self._bar(len(part))
        return torch.cat(found, 1)


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
