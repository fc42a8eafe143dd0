"""Looks at the panel: the model's maps, answers and losses, with everything left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from .._errors import GradCAMError
from .._net.guard import undisturbed
from .._net.layers import named_layers, unwrap
from .._net.reached import Reached
from .._net.shadow import copied, shadow
from ..cam import CAMs, explain
from .look import Look, check_shapes, in_chunks, losses
from .nested import on_device_of, rows
from .panel import Panel
from .settings import Settings
from .subject import Subject, Unwatchable
from .tasks import Task

__all__ = ["Looks"]


@dataclass(eq=False)
class Looks:
    """Looks at the panel, each at a copy of the model as it is then.

    `first` once, which finds out the `layers` and what has to be put back; then `look` within `undisturbed`. `maps`:
    those of the last look, `first_maps`: of the first.
    """

    subject: Subject
    settings: Settings
    layers: list[str] = field(default_factory=list)
    maps: dict[str, np.ndarray] | None = None
    first_maps: dict[str, np.ndarray] | None = None
    _own_weights: bool = False
    _shares: bool = False

    panel: Panel = field(init=False)
    task: Task = field(init=False)

    def first(self, make: Callable[[], tuple[Panel, Task]]) -> CAMs:
        """The panel is made, and one small look shows whether layer, target and method fit this model.

        It also shows what a look changes although it is taken at a copy: that is put back, now and after each frame.
        """
        reached = self._reached()
        try:
            self.panel, self.task = make()
            probe = self._probe(unwrap(self.subject.model()))
        finally:
            changed, lost = reached.put_back()
        # A network whose forward pass writes into its parameters is copied with them from now on.
        self._own_weights = any(isinstance(one, nn.Parameter) for one in changed)
        self._shares = not all(isinstance(one, nn.Parameter) for one in changed)
        if lost:
            raise Unwatchable(
                f"Its forward pass changes a state outside of it that cannot be put back: {'; '.join(lost[:3])}. Keep "
                "it on the network itself, which is copied for each look."
            )
        self.layers = probe.layers
        check_shapes(probe)
        return probe

    def _probe(self, model: nn.Module) -> CAMs:
        panel, layer = self.panel, self.settings.layer
        self._target(slice(0, len(panel)))
        # Named once, so that all frames show the same layer, also after the network has changed.
        named = self.subject.layers or (lambda layer: [name for name, _ in named_layers(model, layer)])
        layers = None if layer is None else named(layer)
        try:
            net = shadow(model)
        except GradCAMError as error:
            raise Unwatchable(str(error)) from error
        self.task.listen(net)
        probe = self._cams(net, slice(0, min(2, len(panel))), layers)
        losses(self._loss(), probe.output, tuple(y[:1] for y in panel.y), 1)
        return probe

    def look(self) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        "The maps of each layer, and the rows of `history.csv`, without their frame."
        panel = self.panel
        net = self.copy_of_model()
        self.task.listen(net)
        look = Look.of(in_chunks(len(panel), lambda part: self._cams(net, part, self.layers)))
        loss = losses(self._loss(), look.output, panel.y, len(panel))
        made = look.rows(panel, self.task, self.settings.target, loss, self.maps, self.first_maps)
        self.maps = look.maps
        self.first_maps = self.first_maps if self.first_maps is not None else look.maps
        return look.maps, made

    def copy_of_model(self) -> nn.Module:
        return shadow(unwrap(self.subject.model()), self._own_weights)

    def _reached(self) -> Reached:
        subject = self.subject
        return Reached([unwrap(subject.model()), subject.loss(), *subject.beside()], subject.beyond)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        "A look in the block leaves random numbers as they were, and any state that the first look was seen to change."
        reached = self._reached() if self._shares else None
        with undisturbed():
            try:
                yield
            finally:
                if reached is not None:
                    reached.put_back()

    def _loss(self) -> Any:
        "A copy of the loss function, which may keep a state; `None` where it cannot be copied."
        try:
            return copied(self.subject.loss())
        except GradCAMError:
            return None

    def _cams(self, net: nn.Module, part: slice, layers: list[str] | None) -> CAMs:
        x = self.subject.inputs(net, on_device_of(net, rows(self.panel.x, part)))
        target, at = self._target(part), self.panel.at
        return explain(net, x, layer=layers, target=target, method=self.settings.method, input=at)

    def _target(self, part: slice) -> Any:
        "The engine's target for a part of the panel. Raises where it does not fit the data."
        return self.task.asked(self.settings.target, len(self.panel), part, [y[part] for y in self.panel.y])
