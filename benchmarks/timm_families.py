"""One small network of each family in timm: is the default layer a place to explain? `models.py --timm-families`.

For each family (a module of timm) the smallest of a few small models, random weights, parameters that start at zero
drawn anew; at its own input size, and at 299 × 331 where it takes that. Asked of each: does the layer have space, does
it take part in the score, is every map finite and not without mass, does it agree with captum there, and does the map
change where the image does. Families whose smallest network has more than 200 million parameters, or is not built
within 30 seconds of processor time, are left out.

Each network has a process of its own and ten minutes; one that hangs leaves the stacks of its threads behind.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastai_gradcam import GradCAMError, gradcam
from fastai_gradcam._net.inputs import inputs_of
from fastai_gradcam._net.layers import Spot
from fastai_gradcam._net.nested import tensors
from fastai_gradcam._search.default import space_of
from fastai_gradcam._search.space import even
from fastai_gradcam.targets import class_scores, main_output

MARK = "<!-- benchmarks/timm_families.py -->"
LARGEST, SECONDS_TO_BUILD, SECONDS = 200e6, 30, 600
CLASSES = 3
_SMALL = "test_ atto femto pico nano xxs xxt _xs _t tiny _mini small _s _05 050 _18 10t 14 lite b0 b_ base".split()


def smallest(family: str) -> str | None:
    "The smallest of a few models of a family that are likely to be small; `None` if that is large, too."
    import timm

    names = [n for n in timm.list_models(module=family) if not n.startswith("test_")]
    likely = sorted(names, key=lambda n: next((i for i, word in enumerate(_SMALL) if word in n), len(_SMALL)))[:5]
    sizes = {}
    for name in likely:
        try:
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:
            sizes[name] = sys.maxsize
    name = min(sizes, key=lambda name: sizes[name], default=None)
    return name if name is not None and sizes[name] <= LARGEST else None


def built(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=CLASSES).eval()
    for p in model.parameters():
        if not p.any() and p.ndim > 1:
            nn.init.normal_(p, std=0.02)
    return model


def takes(model: nn.Module, size: tuple[int, ...]) -> bool:
    "Whether the network itself runs on images of this size."
    try:
        with torch.no_grad():
            model(torch.randn(1, *size))
    except Exception:
        return False
    return True


def look(model: nn.Module, size: tuple[int, ...]) -> tuple[str, str, list[str]]:
    "The layer, its map's size, and what is wrong."
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    made = gradcam(model, x, target=[list(range(CLASSES))] * 2)
    maps, name = made.maps[0], made.layers[0]
    wrong = [note.split(":")[0] for note in made.notes]
    if maps[0, 0].numel() < 2:
        wrong.append("no space")
    if not bool(maps.isfinite().all()):
        wrong.append("not finite")
    # With random weights a map may be negative everywhere, and so empty after the ReLU: only one without mass is wrong.
    if bool(made.negative_share[0].isnan().any()):
        wrong.append("empty")
    theirs, taking_part = _captum(model, name, x)
    if not taking_part:
        wrong.append("takes no part in the score")
    if theirs.shape != maps.shape:
        wrong.append(f"captum's map has shape {tuple(theirs.shape)}")
    else:
        off = float((maps - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
        if off > 1e-3:
            wrong.append(f"captum: {off:.1%} off")
    if not _follows(model, name, x):
        wrong.append("the map does not change where the image does")
    return name, "×".join(map(str, maps.shape[2:])), wrong


def _captum(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, bool]:
    from captum._utils.gradient import compute_layer_gradients_and_eval

    module, maps, part = model.get_submodule(name), [], False
    for c in range(CLASSES):
        G, A = (
            t[0].detach().float()
            for t in compute_layer_gradients_and_eval(lambda x: class_scores(main_output(model(x))), module, x, c)
        )
        part = part or bool(G.any())
        to_space = space_of(model, Spot(name, module), A, inputs_of(x), None)
        G, A = to_space(G), to_space(A)
        maps.append((G.flatten(2).mean(2)[..., None, None] * A).sum(1).relu())
    return torch.stack(maps, 1), part


def _follows(model: nn.Module, name: str, x: Tensor) -> bool:
    """Whether the layer changes most in the quarter of the image that was changed, for three quarters of four.

    Asked of outputs that are not laid out as convolutions have them: with random weights, a deep network mixes all.
    """
    seen: list[Tensor] = []
    module, (h, w) = model.get_submodule(name), (x.shape[2] // 2, x.shape[3] // 2)
    changed = x[:1].repeat(5, 1, 1, 1)
    quarters = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one, (i, j) in zip(changed[1:], quarters, strict=True):
        part = one[:, i * h : i * h + h, j * w : j * w + w]
        part += torch.randn(part.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), module.register_forward_hook(lambda m, a, out: seen.append(tensors(out)[0])):
        model(changed)
    output = seen[-1]
    if output.ndim == 4 and even(output.shape[2:], x.shape[2:]):
        return True
    A = space_of(model, Spot(name, module), output, inputs_of(changed), None)(output)
    moved = torch.nn.functional.interpolate((A[1:] - A[:1]).norm(dim=1)[:, None], (8, 8), mode="area")[:, 0]
    means = moved.unflatten(2, (2, 4)).unflatten(1, (2, 4)).mean((2, 4)).flatten(1)
    return sum(int(row.argmax()) == k for k, row in enumerate(means)) >= 3


def rows_of(name: str, to: Connection) -> None:
    "In a process of its own: the rows of one network, each as soon as it is known."
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    began = time.process_time()
    model = built(name)
    if time.process_time() - began > SECONDS_TO_BUILD:
        return
    to.send(None)  # built
    config = model.default_cfg
    own = tuple(config["input_size"])
    small = own[0], min(own[1], 256), min(own[2], 256)
    own = small if not config.get("fixed_input_size") and takes(model, small) else own
    for size in (own, (own[0], 299, 331)):
        if size != own and not takes(model, size):
            continue
        try:
            layer, space, wrong = look(model, size)
        except GradCAMError as error:
            layer, space, wrong = "", "", [" ".join(str(error).split())[:160]]
        except Exception as error:
            layer, space, wrong = "", "", [f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"]
        to.send(["×".join(map(str, size)), layer, space, wrong])


def tried(name: str) -> list[list[Any]] | None:
    "The rows of one network; `None` if it is not built in time."
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=rows_of, args=(name, there))
    process.start()
    there.close()
    rows: list[Any] = []
    try:
        while True:
            rows.append(here.recv())
    except EOFError:
        process.join()
    if not rows:
        return None
    if process.exitcode:
        rows.append(["", "", "", [f"not done within {SECONDS} s"]])
    return rows[1:]


def table(known: dict[str, list[Any]]) -> str:
    "A summary, and the rows in which something is to be said."
    rows = [(family, name, *row) for family, (name, found) in known.items() for row in found or ()]
    odd = [row for row in rows if row[-1]]
    networks = sum(found is not None for _, found in known.values())
    lines = [
        f"{networks} networks of {len(known)} families were built in time, and looked at {len(rows)} times (the second",
        f"at 299 × 331, where the network takes that). {len(rows) - len(odd)} looks found nothing wrong; these did:",
        "",
        "| family | model | input | default layer | map | |",
        "|---|---|---|---|---|---|",
    ]
    for family, name, size, layer, space, wrong in odd:
        lines.append(f"| {family} | {name} | {size} | {layer and f'`{layer}`'} | {space} | {'; '.join(wrong)} |")
    return "\n".join(lines)


def main(doc: Path, only: str = "", kept: Path | None = None) -> int:
    "Try the families whose name contains `only`. `kept`: a file of results, in which those tried before are found."
    import timm

    known = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    for family in timm.list_modules():
        if only not in family or family in known or (name := smallest(family)) is None:
            continue
        began = time.perf_counter()
        known[family] = name, tried(name)
        print(family, *known[family], f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if kept is not None:
            kept.write_text(json.dumps(known))
    text = table(known)
    print(text)
    if not only and doc.exists():
        before, _, rest = doc.read_text().partition(MARK)
        _, _, after = rest.partition(MARK)
        doc.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}")
    return sum(bool(row[-1]) for _, rows in known.values() for row in rows or ())
