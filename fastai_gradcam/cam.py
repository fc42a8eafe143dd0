"""The engine: `gradcam(model, x)` makes class activation maps from one forward pass and one short backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._engine.guard import evaluating
from ._engine.layers import Layer, Reshape, default_layer, named_layers, space_of, unwrap
from ._engine.restart import Restart
from ._engine.views import as_it_is, noisy_copies, of_view, views
from ._engine.weights import channel_weights, map_tensors
from .methods import Method, resolve_method
from .targets import Decided, Target, class_scores, main_output, scores, settled

__all__ = ["CAMs", "gradcam"]

# Layers with their dotted names; how one's output is brought to `(N, C, *space)`.
Chosen = list[tuple[str, nn.Module]]
Space = Callable[[str, Tensor], Reshape]
# The output, the classes explained, each layer's activations, and its gradients (or weights) per score.
Look = tuple[Any, Tensor | None, list[Tensor], list[list[Tensor]]]


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
    x: Tensor,
    *,
    layer: Layer = None,
    target: Target = None,
    method: str | Method | Callable[[Tensor, Tensor], Tensor] = "gradcam",
    reshape: Reshape | None = None,
) -> CAMs:
    """Class activation maps of `x`, and nothing about `model` changed.

    - `x`: `(N, C, *space)` on the model's device, as the model takes it (normalised).
    - `layer`: `None` (the last with space that takes part in the score), a module, a dotted name, or a list of these.
    - `target`: `None` (each image's predicted class), an int, a LongTensor `(N,)` (one class per image) or `(N, K)`
      (K classes per image), or a callable `output -> (N,)` scores. Logits are explained, never probabilities.
    - `method`: a name in `fastai_gradcam.methods.methods`, which may end in `+noise`, `+aug` or `+eigen`; what
      `smoothed`, `augmented` or `eigen` there makes of a method; or a callable `(activations, gradients) -> maps` on
      `(N, C, *space)` tensors.
    - `reshape`: a callable from the layer's output to `(N, C, *space)`, where the default reads it wrongly.

    Runs in evaluation mode: one forward pass, and one backward pass per class from the score to the earliest layer
    asked for; `scorecam` and `ablationcam` make up to one forward per channel, in float32, and none backward but where
    they find the layer. An outer `no_grad` or a frozen body is no obstacle. Raises `ValueError` or `TypeError` for a layer, target or method that
    does not exist or does not fit, before or after the forward pass.

    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391; the other methods name theirs.
    """
    how = resolve_method(method)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, whose layers can be listened to, got {type(model).__name__}.")
    if reshape is not None and not callable(reshape):
        raise TypeError(f"reshape must be a callable from a layer's output to (N, C, *space), got {reshape!r}.")
    net = unwrap(model)
    with torch.inference_mode(False), evaluating(net):
        x = _as_batch(x)
        chosen = _default(net, x, target, reshape) if layer is None else named_layers(net, layer)

        def another(classes: Tensor) -> Chosen:
            return _default(net, x, target, reshape, tuple(sorted(set(classes.flatten().tolist()))))

        output, classes, chosen, signed = _signed_maps(
            net, x, chosen, target, how, reshape, None if layer is not None or callable(target) else another
        )
    several = classes is not None and classes.ndim == 2
    made = [torch.stack(each, 1) if several else each[0] for each in signed]
    negative = [_negative_share(m, 2 if several else 1) for m in made]
    return CAMs([m.relu() if how.relu else m for m in made], [name for name, _ in chosen], output, classes, negative)


def _as_batch(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor (N, C, *space), got {type(x).__name__}.")
    if x.ndim < 3 or len(x) == 0:
        raise ValueError(f"x must be a batch (N, C, *space) with N ≥ 1, got shape {tuple(x.shape)}.")
    # A network may begin with an operation in place, and a tensor of inference mode takes no part in autograd.
    return x.detach().as_subclass(Tensor).clone()


def _default(
    net: nn.Module, x: Tensor, target: Target, reshape: Reshape | None, classes: tuple[int, ...] = ()
) -> Chosen:
    "The default layer of `classes`, of all classes, or of a callable."
    if callable(target):
        # It may hold something for each image of the whole batch.
        return [
            default_layer(
                net, x, net, lambda output: _sum(scores(output, target, len(x), x.ndim - 2)[0]), target, reshape
            )
        ]

    def score(output: Any) -> Tensor:
        table = target.read(output) if isinstance(target, Decided) else class_scores(main_output(output, x.ndim - 2))
        table = table[:, list(classes)] if classes else table
        # Each class counts differently: their plain sum may be the same for every image (a softmax).
        weights = torch.rand(table.shape[1], generator=torch.Generator().manual_seed(0)) + 0.5
        return (table * weights.to(table)).sum()

    # Two images tell.
    return [default_layer(net, x[:2], net, score, classes or None, reshape)]


def _sum(each: list[Tensor]) -> Tensor:
    return torch.stack([s.sum() for s in each]).sum()


def _signed_maps(
    net: nn.Module,
    x: Tensor,
    chosen: Chosen,
    target: Target,
    how: Method,
    reshape: Reshape | None,
    another: Callable[[Tensor], Chosen] | None,
) -> tuple[Any, Tensor | None, Chosen, list[list[Tensor]]]:
    """The output, the classes explained, the layers, and each layer's maps `(N, *space)` per score, before the ReLU.

    `another(classes)`: the layers to take where a score has no gradient at those chosen: classes may have branches of
    their own.
    """

    def space(name: str, raw: Tensor) -> Reshape:
        to_space = space_of(net, name, raw, x, reshape)
        if to_space is None:
            raise ValueError(
                f"The output of layer {name!r} has shape {tuple(raw.shape)} for an input {tuple(x.shape)}: it has no "
                "space to map. Choose an earlier layer, or say with reshape= how it maps to (N, C, *space)."
            )
        return to_space

    def where_all_arrive() -> Look | None:
        "The look at the chosen layers, which may become others; `None` where it is still to be made."
        nonlocal chosen
        if another is None:
            return None
        seen = _gradients(net, x, chosen, target, space, needed=False)
        _, classes, _, evidence = seen
        arrive = all(bool(G.any()) for Gs in evidence for G in Gs)
        if not arrive and classes is not None and (others := another(classes)) != chosen:
            chosen = others
            return None
        return None if how.weigh else seen

    def look(x: Tensor, target: Target) -> Look:
        if how.weigh:
            with torch.no_grad():
                return channel_weights(net, x, chosen, target, how.weigh, space)
        return _gradients(net, x, chosen, target, space)

    output: Any = None
    views_signed: list[list[list[Tensor]]] = []
    first = where_all_arrive()
    changed = list(views(x)) if how.augment else [(x, as_it_is)]
    for view, back in changed:
        asked = of_view(target, back, x.shape[2:])
        seen, classes, activations, evidence = first or look(view, asked)
        if not views_signed:
            first = None
            output = map_tensors(Tensor.detach, seen)
            # Changed copies may be taken for another class: they are asked about that of the image as it is.
            target = asked = settled(target, output, classes, x.ndim - 2)
        copies = [evidence]
        if how.noise:
            copies = [look(noisy, asked)[-1] for noisy in noisy_copies(view, *how.noise)]
        signed = [
            [back(_map(how, A, Gs, name)) for Gs in zip(*(copy[i] for copy in copies), strict=True)]
            for i, ((name, _), A) in enumerate(zip(chosen, activations, strict=True))
        ]
        views_signed.append(signed)
    if len(changed) > 1:
        signed = [
            [torch.stack(same).mean(0) for same in zip(*layer, strict=True)]
            for layer in zip(*views_signed, strict=True)
        ]
    return output, classes, chosen, signed


def _gradients(net: nn.Module, x: Tensor, chosen: Chosen, target: Target, space: Space, needed: bool = True) -> Look:
    """The output, the classes explained, each layer's activations, and its gradients per score, `(N, C, *space)`.

    `needed`: whether a layer that a score does not depend on is an error, or has a gradient of zero.
    """
    modules = [module for _, module in chosen]
    # A network that turns gradients off by itself (a body under `no_grad`), or whose fast path skips its modules,
    # hides the layer from the first try; the second runs with gradients on throughout.
    for grad in (False, True):
        with torch.set_grad_enabled(grad), Restart(modules) as restart:
            output = net(x)
            each, classes = scores(output, target, len(x), x.ndim - 2)
        ran = [t is not None for t in restart.outputs]
        if all(ran) and all(s.requires_grad for s in each):
            break
    for (name, module), hit in zip(chosen, ran, strict=True):
        if not hit:
            raise ValueError(
                f"Layer {name!r} ({type(module).__name__}) gave no tensor in the forward pass: it was not run, or its "
                "output holds no floating-point tensor."
            )
    # None is missing: that was told above.
    outputs = [t for t in restart.outputs if t is not None]
    per_score = []
    for k, score in enumerate(each):
        keep = k + 1 < len(each)
        grads: Sequence[Tensor | None] = (
            torch.autograd.grad(score.sum(), outputs, retain_graph=keep, allow_unused=True)
            if score.requires_grad
            else [None] * len(chosen)
        )
        arrived = []
        for (name, _), g, t in zip(chosen, grads, outputs, strict=True):
            if g is None and not needed:
                g = torch.zeros_like(t)
            elif g is None:
                raise ValueError(
                    f"The score does not depend on layer {name!r}: no gradient arrives there. Choose a layer that the "
                    "score is computed from."
                )
            arrived.append(g)
        per_score.append(arrived)
    to_space = [space(name, t.detach()) for (name, _), t in zip(chosen, outputs, strict=True)]
    activations = [to(t.detach()).float() for to, t in zip(to_space, outputs, strict=True)]
    return output, classes, activations, [[to(gs[i]).float() for gs in per_score] for i, to in enumerate(to_space)]


def _map(how: Method, A: Tensor, Gs: Sequence[Tensor], name: str) -> Tensor:
    with torch.no_grad():
        signed = how.signed(A, *Gs)
    wanted = (len(A), *A.shape[2:])
    if not isinstance(signed, Tensor) or tuple(signed.shape) != wanted:
        got = tuple(signed.shape) if isinstance(signed, Tensor) else type(signed).__name__
        raise ValueError(
            f"Method {how.name!r} must return maps of shape {wanted} for activations {tuple(A.shape)} of layer "
            f"{name!r}, got {got}."
        )
    return signed.float()


def _negative_share(signed: Tensor, lead: int) -> Tensor:
    flat = signed.flatten(lead)
    mass = flat.abs().sum(-1)
    return (-flat).relu().sum(-1) / torch.where(mass > 0, mass, torch.nan)
