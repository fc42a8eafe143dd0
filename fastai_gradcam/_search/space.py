"""How a layer's output lies in space, by its shape: NCHW, NHWC, tokens, any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from .._errors import GradCAMError

__all__ = ["Reading", "Reshape", "beyond_doubt", "even", "readings_of", "spatial"]

Reshape = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reading:
    """How a layer's output is brought to `(N, C, *space)`.

    `last`: channels are the last dimension. `grid`: the shape that the one dimension of cells is unfolded to, from its
    cell `skip` on (class, distillation and register tokens lie before or after it); `None` where space has dimensions
    of its own.
    """

    last: bool
    skip: int = 0
    grid: tuple[int, ...] | None = None

    def __call__(self, output: Tensor) -> Tensor:
        output = output.movedim(-1, 1) if self.last else output
        if self.grid is None:
            return output
        return output[:, :, self.skip : self.skip + math.prod(self.grid)].unflatten(2, self.grid)


def spatial(output: Tensor, x_shape: Sequence[int], reshape: Reshape | None = None) -> Reshape | None:
    """A function that brings a layer's output, or its gradient, to `(N, C, *space)`; `None` where it has no space.

    `x_shape`: the input's `(N, C, *space)`, by which layouts are told apart: in `(N, C, h, w)` and `(N, h, w, C)` space
    is the pair with the input's aspect ratio, the first pair if both have it; in `(N, tokens, C)` the last h·w tokens
    are the grid with that ratio, and those before it (class, distillation, registers) are dropped. The search tries out
    what shapes leave open. A caller's `reshape` overrides. Raises `GradCAMError` where `reshape` returns another batch
    or no space.
    """
    if reshape is None:
        return next(iter(readings_of(output.shape, x_shape)), None)
    shaped = reshape(output)
    if not isinstance(shaped, Tensor) or shaped.ndim < 3 or len(shaped) != x_shape[0]:
        got = tuple(shaped.shape) if isinstance(shaped, Tensor) else type(shaped).__name__
        raise GradCAMError(
            f"reshape must return (N, C, *space) with N = {x_shape[0]}, got {got} from a layer's output "
            f"{tuple(output.shape)}."
        )
    return reshape


def readings_of(shape: Sequence[int], x_shape: Sequence[int]) -> list[Reading]:
    "The ways in which an output of this shape may lie in space, the likeliest first."
    size = x_shape[2:]
    if shape[:1] != x_shape[:1]:
        return []
    if len(x_shape) > 4 and len(shape) == 3 and {shape[1], shape[1] - 1} & ({*x_shape[1:3]} - {1}):
        return []  # a vector for each image of a sequence, (N, T, C, h, w) or (N, C, T, h, w), is not a grid
    if len(shape) == len(x_shape):
        return _dense(shape, size)
    return _flat(shape, size) if len(shape) == 3 else []


def _dense(shape: Sequence[int], size: Sequence[int]) -> list[Reading]:
    # Pooled: in one dimension `(N, C, 1)` would pass for C cells of one channel.
    if math.prod(shape[2:]) <= 1:
        return []
    spaces = {False: shape[2:], True: shape[1:-1]}
    able = [last for last, cells in spaces.items() if math.prod(cells) > 1 and all(map(_le, cells, size))]
    # Channels first is what convolutions give: with strides that may be equal it is believed before channels last.
    return [Reading(k) for k in sorted(able, key=lambda k: 0 if even(spaces[k], size) else _misfit(spaces[k], size))]


def _le(cells: int, pixels: int) -> bool:
    return cells <= pixels


def _misfit(space: Sequence[int], size: Sequence[int]) -> float:
    "Log of the ratio between the strides from input to `space`."
    strides = [s / cells for s, cells in zip(size, space, strict=True)]
    return math.log(max(strides) / min(strides))


def even(space: Sequence[int], size: Sequence[int]) -> bool:
    "Whether one stride leads from input to `space`, up to the cells that padding and rounding add or take."
    slack = 1
    most = min(s / (cells - slack) if cells > slack else math.inf for s, cells in zip(size, space, strict=True))
    return max(s / (cells + slack) for s, cells in zip(size, space, strict=True)) <= most


def _flat(shape: Sequence[int], size: Sequence[int]) -> list[Reading]:
    "Readings of `(N, tokens, C)` and `(N, C, cells)` of an image or a volume."
    # Class, distillation and register tokens: up to five in the models there are, never sixteen. Grids of whole square
    # patches are believed before those whose stride does not divide the image, and tokens that come first before
    # others.
    found = []
    for fits, most in ((_whole, 5), (_rounded, 15)):
        tokens = [(extra, grid) for extra in range(most + 1) for grid in _grids(shape[1] - extra, size, fits)]
        found += [Reading(True, extra, grid) for extra, grid in tokens]
        found += [Reading(True, skip, grid) for extra, grid in tokens for skip in range(extra) if extra <= 5]
        if shape[1] > 1:
            found += [Reading(False, 0, grid) for grid in _grids(shape[2], size, fits)]
        if found and fits is _whole:
            return found[:_MOST_READINGS]
    # A network may make every image square before it takes it apart; that is likelier than a dozen tokens of no place.
    sides = [(extra, math.isqrt(max(shape[1] - extra, 0))) for extra in range(6 if len(size) == 2 else 0)]
    square = [Reading(True, extra, (k, k)) for extra, k in sides if k > 1 and k * k == shape[1] - extra]
    few = [r for r in found if not r.last or shape[1] - math.prod(r.grid or ()) <= 5]
    return [*few, *square, *(r for r in found if r not in few)][:_MOST_READINGS]


_MOST_READINGS = 32


def _grids(cells: int, size: Sequence[int], fits: Callable[[int, int, Sequence[int]], bool]) -> Iterator[tuple]:
    if len(size) == 2:
        for rows in range(1, min(cells, size[0]) + 1):
            if cells % rows == 0 and cells > 1 and fits(rows, cells // rows, size):
                yield rows, cells // rows
    elif len(size) == 3:
        # Depth (time) may have a stride of its own.
        depths = [d for d in range(size[0], 0, -1) if size[0] % d == 0 and cells % d == 0]
        each = [(d, *grid) for d in depths for grid in _grids(cells // d, size[1:], fits)]
        yield from sorted(each, key=lambda grid: not even(grid, size))


def _whole(rows: int, columns: int, size: Sequence[int]) -> bool:
    return size[0] % rows == 0 and size[0] // rows * columns == size[1]


def _rounded(rows: int, columns: int, size: Sequence[int]) -> bool:
    # Rows and columns may each lose a part of a patch.
    patch = size[0] / rows
    return patch >= 1 and abs(size[1] / patch - columns) < 1


def beyond_doubt(readings: Sequence[Reshape], shape: Sequence[int], size: Sequence[int]) -> bool:
    "Whether shapes alone say how the output lies in space: channels first, and nothing else that might be."
    if not readings or readings[0] != Reading(False) or not even(shape[2:], size):
        return False
    return len(readings) == 1 or not even(shape[1:-1], size)
