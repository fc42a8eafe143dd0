"""The questions to a model and its answers: how targets are spelled, scores read, and classes named.

| a target of the training | output | `target=` | default | "true" |
|---|---|---|---|---|
| `category` | `(N, C)` | labels, indices | the predicted class | the image's class |
| `category`, one logit | `(N, 1)`, `(N,)` | both classes | the predicted one | the image's class |
| `category`, with space | `(N, C, *space)` | labels, indices | the largest region | the largest class in the mask |
| `labels` | `(N, C)` | labels, indices | each predicted label | the first of the image's labels |
| `regression` | `(N,)`, `(N, n)` | `"score"`, `"-score"`, `"score 1"` | the score | the score |

If there are several targets, the first is explained unless a label says otherwise, or a dict such as `{1: "small"}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradCAMError, GradCAMTypeError, one_of
from .._net.endings import Endings
from ..targets import Contrast, Decided, Segment
from .asked import as_list, each, is_score, per_image, side
from .head import CATEGORY, LABELS, REGRESSION, Answer, Head
from .losses import LOG, SIGMOID, SOFTMAX, asked
from .outputs import Spot, find

__all__ = ["CATEGORY", "LABELS", "REGRESSION", "Answer", "Head", "Task", "as_list"]

_Pick = Callable[[Tensor], Tensor]


@dataclass
class Task:
    """The targets of a training, in the order of its `y`s. `loss`: its loss function, or a copy of it.

    `listen` to a network before it is asked; where its scores stand is found by its first output.
    """

    heads: list[Head]
    loss: Any = None
    _endings: Endings | None = None
    _spots: list[Spot] = field(default_factory=list)
    _columns: list[int] = field(default_factory=list)
    _chosen: dict[int, Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        "The kind of the first target."
        return self.heads[0].kind

    @property
    def vocab(self) -> list[str] | None:
        "The names of the classes, those of several targets one after the other; `None` where classes have none."
        names = [str(v) for h in self.heads for v in h.vocab or ()]
        return names or None

    def listen(self, net: nn.Module) -> None:
        "Note what `net`, a shadow, ends in, from its next pass on."
        self._endings = Endings(net)

    # --- scores

    def scores(self, output: Any) -> list[Tensor]:
        "The scores of each target in an output."
        if not self._spots:
            self._spots = find(output, self.heads, self.loss)
            self.heads = [self._settled(i, output) for i in range(len(self.heads))]
        return [spot.of(output) for spot in self._spots]

    def _settled(self, i: int, output: Any) -> Head:
        "A target, with the activation that the loss has for it."
        head, spot = self.heads[i], self._spots[i]
        if head.kind == REGRESSION or head.activation is not None or not callable(self.loss):
            return head
        scores = spot.of(output)
        if scores.ndim > 2:
            return head
        width = 1 if scores.ndim == 1 else scores.shape[1]
        shapes = [() if h.kind == REGRESSION else (h.width or 2,) for h in self.heads]
        shapes[i] = (width,)
        return replace(head, activation=asked(self.loss, lambda s: spot.put(output, s), shapes, i))

    def table(self, output: Any, like: Tensor | None = None) -> Tensor:
        "`(N, C)`: the scores of the first target's classes, then those of the next."
        each = []
        for i, scores in enumerate(self.scores(output)):
            regions = like if like is not None and like.shape == scores.shape else None
            ending = self._ending(i)
            each.append(self.heads[i].table(scores, ending is not None, regions))
            if (chosen := self.heads[i].chosen(scores.detach(), ending, undone=True)) is not None:
                self._chosen[i] = chosen
        self._columns = [t.shape[1] for t in each]
        return torch.cat(each, 1)

    def _place(self, column: int) -> tuple[int, int]:
        "The target and its own column."
        for i, count in enumerate(self._columns):
            if column < count:
                return i, column
            column -= count
        raise IndexError(column)

    def _at(self, i: int, pick: _Pick) -> _Pick:
        "`pick` among the columns of target `i`."

        def picked(table: Tensor) -> Tensor:
            start = sum(self._columns[:i])
            return pick(table[:, start : start + self._columns[i]]) + start

        return picked

    # --- targets

    def asked(self, wanted: Any, n: int, part: slice, ys: Sequence[Tensor]) -> Any:
        """As `target`, where the truth is known: `"true"` is each image's own answer, `"pred"` the model's.

        `ys`: the targets of the images in `part`.
        """
        if isinstance(wanted, Mapping):
            return self._decided(self._by_head(wanted, n, part, ys))
        special = self._special(wanted, 0, ys)
        return self.target(wanted, n, part) if special is None else self._decided([special])

    def _first(self, i: int) -> _Pick:
        "The predicted class as the loss decodes it; of a map of classes, the one with the largest region."
        return lambda table: self._chosen[i] if i in self._chosen else self.heads[i].first(table)

    def _default(self, i: int) -> _Pick:
        return lambda table: self._chosen[i] if i in self._chosen else self.heads[i].default(table)

    def _special(self, wanted: Any, i: int, ys: Sequence[Tensor]) -> _Pick | None:
        head = self.heads[i]
        if wanted is None or (isinstance(wanted, str) and wanted == "pred"):
            return self._at(i, self._first(i))
        if isinstance(wanted, str) and wanted == "true":
            return self._at(i, head.true(ys[i] if i < len(ys) else None))
        return None

    def _by_head(self, wanted: Mapping[Any, Any], n: int, part: slice, ys: Sequence[Tensor] | None) -> list[_Pick]:
        picks = []
        for i, one in wanted.items():
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(self.heads):
                raise GradCAMError(
                    f"target={dict(wanted)!r} asks for target {i!r}, but this learner has targets 0 to "
                    f"{len(self.heads) - 1}."
                )
            special = self._special(one, i, ys) if ys is not None else None
            if special is None and one is None:
                special = self._at(i, self._default(i))
            picks.append(special or self._rows(one, n, part, i))
        if not picks:
            raise GradCAMError("target={} names no class to explain.")
        return picks

    def _decided(self, picks: list[_Pick]) -> Decided:
        def pick(table: Tensor) -> Tensor:
            each = [p(table) for p in picks]
            return each[0] if len(each) == 1 else torch.cat([c if c.ndim == 2 else c[:, None] for c in each], 1)

        return Decided(self.table, pick)

    def target(self, wanted: Any, n: int, part: slice = slice(None)) -> Any:
        """The user's `target=` in the engine's terms, for those of `n` images that are in `part`.

        `None`, a label or an index for all images, a list of these (several per image), a tensor, an array or a list of
        lists (a row for each image), a dict of these by target, or a callable. Raises `GradCAMError` for a label or
        index that does not exist, with the nearest, and for a number of rows that is not `n`.
        """
        if isinstance(wanted, (Contrast, Segment)):
            return wanted.named(self.heads[0].index).images(part, n)
        if callable(wanted):
            return wanted
        if wanted is None:
            return self._decided([self._at(0, self._default(0))])
        if isinstance(wanted, Mapping):
            return self._decided(self._by_head(wanted, n, part, None))
        return self._decided([self._rows(wanted, n, part, None)])

    def both(self, ys: Sequence[Tensor]) -> Decided:
        "The class that was predicted and the one that is true; each label, where there are several; the score."
        head, y = self.heads[0], ys[0] if ys else None
        if head.kind == REGRESSION:
            return self._decided([self._at(0, self._first(0))])
        first, true = self._default(0), head.all_true(y)

        def pick(table: Tensor) -> Tensor:
            own = [c if c.ndim == 2 else c[:, None] for c in (first(table), true(table).to(table.device))]
            return torch.cat(own, 1)

        return self._decided([self._at(0, pick)])

    def top(self, k: int) -> Decided:
        "The `k` classes with the highest scores, the highest first; the score, where there are no classes."
        head = self.heads[0]

        def pick(table: Tensor) -> Tensor:
            return head.first(table) if head.kind == REGRESSION else table.topk(min(k, table.shape[1])).indices

        return self._decided([self._at(0, pick)])

    def _rows(self, wanted: Any, n: int, part: slice, i: int | None) -> _Pick:
        "The classes named, each of any target, or all of target `i`."
        rows = per_image(wanted, n)
        rows = rows[part] if isinstance(rows, list) else rows
        places = each(lambda target: self._find(target, i), rows)

        def pick(table: Tensor) -> Tensor:
            columns = each(lambda place: self._column(*place), places)
            made = torch.as_tensor(columns, device=table.device)
            return made if made.ndim else made.expand(len(table))

        return pick

    def _find(self, target: Any, i: int | None) -> tuple[int | None, int, bool]:
        "The target that a label belongs to, its index there, and whether its negative is meant."
        if i is not None:
            head = self.heads[i]
            return (i, *side(target)) if head.kind == REGRESSION else (i, head.index(target), False)
        if len(self.heads) == 1:
            return self._find(target, 0)
        own = [k for k, h in enumerate(self.heads) if self._knows(h, target)]
        if len(own) > 1:
            example = f"{{{own[0]}: {target!r}}}"
            raise GradCAMError(f"{target!r} is a class of several targets: say which by target={example}.")
        if own:
            return self._find(target, own[0])
        if isinstance(target, int) and not isinstance(target, bool):
            return None, target, False
        raise GradCAMError(one_of("class", target, self.vocab or ["score"]))

    def _knows(self, head: Head, target: Any) -> bool:
        if head.kind == REGRESSION:
            return is_score(target)
        try:
            head.index(target)
        except (GradCAMError, GradCAMTypeError):
            return False
        return isinstance(target, str) or any(type(v) is type(target) for v in head.vocab or ())

    def _column(self, i: int | None, index: int, negative: bool) -> int:
        if i is None:
            if not 0 <= index < sum(self._columns):
                raise GradCAMError(
                    f"target {index} is out of range: the model has classes 0 to {sum(self._columns) - 1}."
                )
            return index
        count = self._columns[i] // 2 if self.heads[i].kind == REGRESSION else self._columns[i]
        if not 0 <= index < count:
            what = "scores" if self.heads[i].kind == REGRESSION else "classes"
            raise GradCAMError(f"target {index} is out of range: the model has {what} 0 to {count - 1}.")
        return sum(self._columns[:i]) + index + count * negative

    def in_words(self, wanted: Any, i: int, n: int) -> str | None:
        "The class that a callable target explains for image `i` of `n`, `None` where it does not say."
        if isinstance(wanted, (Contrast, Segment)):
            head = self.heads[0]
            wanted = wanted.named(lambda target: head.named(head.index(target))).images(slice(i, i + 1), n)
        name = getattr(wanted, "__name__", None)
        return None if name == "<lambda>" else name

    # --- answers

    def head_of(self, column: int) -> int:
        "Which target a column of the table belongs to; ask after a pass."
        return self._place(column)[0] if self._columns else 0

    def name(self, column: int) -> str:
        "The name of a column of the table; ask after a pass."
        i, own = self._place(column)
        return self.heads[i].column(own, self._columns[i])

    def label(self, ys: Sequence[Tensor], i: int = 0) -> str | None:
        "Target `i` of one image in words, `None` where it is not known."
        return self.heads[i].label(ys[i]) if i < len(ys) else None

    def probabilities(self, output: Any) -> Tensor | None:
        "`(N, C)` as in the table, NaN where they are not known; `None` where none is."
        each = [h.probabilities(s.detach(), self._ending(i)) for i, (h, s) in enumerate(self._both(output))]
        if all(p is None for p in each):
            return None
        n, columns = len(self.scores(output)[0]), self._columns or [0 if p is None else p.shape[1] for p in each]
        unknown = [torch.full((n, c), torch.nan) for c in columns]
        return torch.cat([u if p is None else p.cpu() for p, u in zip(each, unknown, strict=True)], 1)

    def answers(self, output: Any, ys: Sequence[Tensor] = (), i: int = 0) -> list[Answer] | None:
        "The model's answer for each image to target `i`."
        head, scores = self._both(output)[i]
        return head.answers(scores.detach(), self._ending(i), ys[i] if i < len(ys) else None)

    def _both(self, output: Any) -> list[tuple[Head, Tensor]]:
        scores = self.scores(output)
        return list(zip(self.heads, scores, strict=True))

    def _ending(self, i: int) -> str | None:
        kind = self._endings.kinds.get(self._spots[i].part) if self._endings is not None else None
        return kind and {"Sigmoid": SIGMOID, "LogSoftmax": LOG}.get(kind, SOFTMAX)
