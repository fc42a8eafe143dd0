"""The cost of an atlas, and whether its habits are right: writes docs/atlas/ and the figures in docs/atlas.md.

python benchmarks/atlas.py time         10,000 images beside learn.validate(), interleaved, and memory on the way
python benchmarks/atlas.py million      merge, statistics, habits and page from parts of 1,000,000 synthetic rows
python benchmarks/atlas.py habits       planted minorities and honest models
python benchmarks/atlas.py write        docs/atlas.md again, from docs/atlas/*.csv
"""

import argparse
import resource
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs/atlas"
LEVELS, FIXED, REPORTED, HONEST = (75, 90, 95), range(100, 103), range(4), range(12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "million", "habits", "write"])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--fixing", action="store_true", help="habits: the seeds that thresholds are fixed on")
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    if options.what == "time":
        timed(options.images)
    if options.what == "million":
        million(options.rows)
    if options.what == "habits":
        habits(options.fixing)
    write()


# --- time and memory


def timed(images: int, chunks: int = 5) -> None:
    "Chunks of the data set, each validated and then put into an atlas; memory is that of one atlas of all."
    import torch
    from fastai.vision.all import ImageDataLoaders, accuracy, resnet18, vision_learner
    from PIL import Image

    import fastai_gradcam.learner  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rng, files = np.random.default_rng(0), []
        for i in range(500):
            files.append(Path(folder, f"{'ab'[i % 2]}-{i}.jpg"))
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(files[-1])
        items = [files[i % 500] for i in range(images)]
        dls = ImageDataLoaders.from_path_func(
            folder, items, label_of, valid_pct=0.01, bs=64, num_workers=0, device="cpu"
        )
        learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, path=folder)
        learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])

        def loader(n: int):
            return dls.test_dl(items[:n], with_labels=True, bs=64)

        learn.validate(dl=loader(128))
        learn.gradcam_atlas(dl=loader(128), judge=False)
        rows = []
        for chunk in range(chunks):
            dl = loader(images // chunks)
            rows.append({"chunk": chunk, "images": images // chunks})
            for name, run in (
                ("validate", lambda dl=dl: learn.validate(dl=dl)),
                ("atlas", lambda dl=dl: learn.gradcam_atlas(dl=dl, name=f"c{chunk}", judge=False)),  # noqa: B023
            ):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                rows[-1] |= {name: time.perf_counter() - wall, f"{name}_cpu": time.process_time() - cpu}
            print(rows[-1], flush=True)
        pd.DataFrame(rows).round(2).to_csv(OUT / "time.csv", index=False)
        memory(learn, loader(images), folder, images)


def label_of(file: Path) -> str:
    return file.name[0]


def memory(learn, dl, folder: str, images: int) -> None:
    "The memory of this process after each part of one atlas."
    found, parts = [], Path(folder, "gradcam/memory/parts")
    over = threading.Event()

    def sample() -> None:
        done = -1
        while not over.wait(0.2):
            now = len(list(parts.glob("*.npz"))) if parts.exists() else 0
            if now > done:
                done = now
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                found.append({"parts": now, "mib": pages * resource.getpagesize() / 2**20})

    thread = threading.Thread(target=sample)
    thread.start()
    atlas = learn.gradcam_atlas(dl=dl, name="memory", judge=False)
    over.set()
    thread.join()
    table = pd.DataFrame(found)
    table["images"] = (table["parts"] * atlas.plan.part).clip(upper=images)
    table[["images", "mib"]].round(1).to_csv(OUT / "memory.csv", index=False)


# --- a million rows


def million(rows: int) -> None:
    "Synthetic parts of 100 classes with two habits each; each step timed, memory the peak of the process."
    from fastai_gradcam._atlas.store import ROW_COLUMNS, WORDS, Plan, Store
    from fastai_gradcam.atlas import Atlas

    steps = []
    with tempfile.TemporaryDirectory() as folder:
        store, vocab = Store(Path(folder)), [f"class {i:02d}" for i in range(100)]
        plan = Plan(rows, 1024, 64, "0.7", [7, 7], "true", "gradcam", "w", "d", folder, vocab)
        store.begin(plan)
        rng = np.random.default_rng(0)
        for k in range(plan.parts):
            index = np.array(plan.indices(k))
            maps, features = rng.random((len(index), 7, 7)), rng.normal(0, 0.1, (len(index), 48))
            odd = index % 10 == 0
            maps[~odd, 1:3, 1:3] += 3
            maps[odd, 4:6, 4:6] += 3
            label = np.array(vocab)[index // 10 % 100]
            table = pd.DataFrame({name: rng.random(len(index)) for name in ROW_COLUMNS})
            table = table.assign(index=index, **dict.fromkeys(WORDS, label), correct=(~odd).astype(float))
            store.write(k, table.assign(name=[f"{i}.jpg" for i in index]), maps / 4, features)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*.*")) / 1e6
        print(f"written, {size:.0f} MB", flush=True)
        atlas = Atlas(folder)
        for name, step in (
            ("merge the rows", lambda: atlas.table),
            ("mean maps and distances", lambda: atlas.classes),
            ("habits", lambda: atlas.groups),
            ("page", atlas.report),
        ):
            begun = time.perf_counter(), time.process_time()
            made = step()
            wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
            steps.append({"step": name, "seconds": wall, "cpu": cpu})
            steps[-1]["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(steps[-1], flush=True)
        steps[-1]["page_mb"] = Path(made).stat().st_size / 1e6
        pd.DataFrame(steps).assign(rows=rows, folder_mb=size).round(1).to_csv(OUT / "million.csv", index=False)


# --- habits


def habits(fixing: bool) -> None:
    "A row for each model: planted marks on three shares of a class, and none."
    rows = []
    levels = LEVELS if not fixing else (90,)
    for seed in FIXED if fixing else REPORTED:
        rows += [judged_model(seed, level) for level in levels]
    rows += [judged_model(seed, 0) for seed in (FIXED if fixing else HONEST)]
    if not fixing:
        pd.DataFrame(rows).round(3).to_csv(OUT / "habits.csv", index=False)


def judged_model(seed: int, level: int) -> dict:
    import torch
    from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
    from torch import nn

    import fastai_gradcam.learner  # noqa: F401

    torch.set_num_threads(1)
    set_seed(1000 * level + seed)
    train, _ = pictures(1200, level, seed)
    valid, marked = pictures(800, level, seed + 5000)
    layers, channels = [], 3
    for out in (16, 32, 64):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        channels = out
    model = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    dls = DataLoaders.from_dsets(train, valid, bs=50, shuffle=True, device="cpu", num_workers=0)
    dls.vocab = list("abcd")
    with tempfile.TemporaryDirectory() as folder:
        learn = Learner(dls, model, CrossEntropyLossFlat(), path=folder)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(6, 4e-3)
            atlas = learn.gradcam_atlas()
        groups, table = atlas.groups, atlas.table
        right = table.correct.astype(float).to_numpy()
        own = np.array([y == 0 for _, y in valid])
        minority = own & ~marked
        row = {"seed": seed, "level": level, "accuracy": right.mean(), "flagged": int(groups.flagged.sum())}
        row |= {"shortcut": int((atlas.verdicts.verdict == "shortcut").any()), "top": groups.suspicion[0]}
        if level:
            row |= {"marked_right": right[own & marked].mean(), "minority_right": right[minority].mean()}
            row |= {"minority": int(minority.sum()), "p10": precision(groups.typical[0], minority)}
            row |= {"random": minority.mean(), "spray": precision(spray(atlas), minority)}
        print(row, flush=True)
        return row


def precision(chosen, truth: np.ndarray) -> float:
    return float(truth[list(chosen)[:10]].sum() / 10)


def pictures(n: int, level: int, seed: int):
    "Four shapes on noise; `level` % of the first class have a mark in a corner. The items, and which are marked."
    import torch

    rng, items, marked = np.random.default_rng(seed), [], np.zeros(n, bool)
    for i in range(n):
        x, kind = rng.normal(0.45, 0.14, (3, 32, 32)), i % 4
        a, b, size = rng.integers(4, 14), rng.integers(4, 14), rng.integers(10, 15)
        yy, xx = np.mgrid[:size, :size]
        ring = np.hypot(yy - size / 2, xx - size / 2)
        shape = (
            abs(ring - size / 2.6) < 1.4,
            (np.minimum(yy, size - 1 - yy) < 2) | (np.minimum(xx, size - 1 - xx) < 2),
            (abs(yy - size // 2) < 2) | (abs(xx - size // 2) < 2),
            (abs(yy - xx) < 2) | (abs(yy + xx - size + 1) < 2),
        )[kind]
        x[:, a : a + size, b : b + size] += shape * rng.uniform(0.12, 0.35)
        if kind == 0 and rng.random() < level / 100:
            marked[i] = True
            x[:, -6:-1, -6:-1] = np.array([0.9, 0.1, 0.8])[:, None, None]
        items.append((torch.tensor(x, dtype=torch.float32), kind))
    return items, marked


def spray(atlas) -> list[int]:
    """SpRAy as Lapuschkin et al. 2019 describe it: each class's maps, spectral clusters, as many as the eigengap says.

    They look at the clusters by eye. In their place Fisher's criterion (Anders et al. 2022) takes the one that is
    farthest apart; the images are those nearest to its centre.
    """
    from sklearn.cluster import KMeans
    from sklearn.neighbors import kneighbors_graph

    maps, best = np.stack(list(atlas.maps())), (-1.0, [])
    for label in atlas.labels:
        own = np.flatnonzero((atlas.table.label == label).to_numpy())
        flat = maps[own].reshape(len(own), -1)
        own, flat = own[flat.sum(1) > 0], flat[flat.sum(1) > 0]
        flat = flat / flat.max(1, keepdims=True)
        graph = kneighbors_graph(flat, max(2, int(np.log(len(flat)))), mode="connectivity").toarray()
        graph = np.maximum(graph, graph.T)
        scale = 1 / np.sqrt(graph.sum(1))
        values, vectors = np.linalg.eigh(np.eye(len(flat)) - scale[:, None] * graph * scale)
        k = int(np.argmax(np.diff(values[1:10]))) + 2
        at = vectors[:, :k] / np.linalg.norm(vectors[:, :k], axis=1, keepdims=True).clip(1e-12)
        groups = KMeans(k, n_init=4, random_state=0).fit_predict(at)
        for g in range(k):
            inside, outside = at[groups == g], at[groups != g]
            if len(inside) < 3 or len(outside) < 3:
                continue
            centre = inside.mean(0)
            within = inside.var(0).sum() + outside.var(0).sum()
            score = float(((centre - outside.mean(0)) ** 2).sum() / max(within, 1e-9))
            if score > best[0]:
                order = np.argsort(np.linalg.norm(inside - centre, axis=1))
                best = (score, own[groups == g][order][:10].tolist())
    return best[1]


# --- the page


def write() -> None:
    "The figures between the marks of docs/atlas.md, from whatever tables are there."
    page = OUT.parent / "atlas.md"
    before, mark, rest = page.read_text(encoding="utf-8").partition("<!-- figures -->\n")
    after = rest.partition("<!-- end of figures -->")[2]
    text = "\n".join(part() for part in (time_words, million_words, habits_words))
    page.write_text(f"{before}{mark}{text}<!-- end of figures -->{after}", encoding="utf-8")


def time_words() -> str:
    if not (OUT / "time.csv").exists():
        return "Time and memory beside `learn.validate()`: not measured yet.\n"
    table, memory = pd.read_csv(OUT / "time.csv"), pd.read_csv(OUT / "memory.csv")
    wall, cpu = (table[f"atlas{k}"] / table[f"validate{k}"] for k in ("", "_cpu"))
    total, n = table["images"].sum(), len(table)
    rows = [
        ("time on the clock", f"{table.atlas.sum() / table.validate.sum():.2f}", f"{wall.min():.2f}–{wall.max():.2f}"),
        (
            "processor time",
            f"{table.atlas_cpu.sum() / table.validate_cpu.sum():.2f}",
            f"{cpu.min():.2f}–{cpu.max():.2f}",
        ),
    ]
    half = memory[memory["images"] >= memory["images"].max() / 10]
    plot(memory)
    return (
        f"resnet18, 64 pixels, batches of 64, one thread on the CPU, {total:,} images in {n} interleaved pairs, as a "
        "multiple of\n`learn.validate()` on the same loader:\n\n| | all | lowest–highest pair |\n|---|---|---|\n"
        + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in rows)
        + f"\nMemory of the process in an atlas of {memory['images'].max():,} images: {half.mib.iloc[0]:.0f} MiB after "
        f"{half['images'].iloc[0]:,}, {half.mib.iloc[-1]:.0f} MiB\nafter the last.\n"
    )


def plot(memory: pd.DataFrame) -> None:
    from matplotlib.figure import Figure

    figure = Figure((6, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(memory["images"], memory["mib"])
    axes.set(ylim=(0, 1.2 * memory["mib"].max()), xlabel="images in the atlas", ylabel="memory of the process, MiB")
    figure.savefig(OUT / "memory.png", dpi=120)


def million_words() -> str:
    if not (OUT / "million.csv").exists():
        return "Merge, statistics and page of many rows: not measured yet.\n"
    table = pd.read_csv(OUT / "million.csv")
    size = f"{table.page_mb.dropna().iloc[-1]:.1f} MB of page, {table.folder_mb.iloc[0]:.0f} MB of parts"
    return (
        f"Reading {table.rows.iloc[0]:,} synthetic rows of 100 classes ({size}):\n\n"
        "| step | seconds on the clock | seconds of processor time | peak memory so far, MiB |\n|---|---|---|---|\n"
        + "".join(f"| {r.step} | {r.seconds} | {r.cpu} | {r.peak_mib:.0f} |\n" for r in table.itertuples())
    )


def habits_words() -> str:
    if not (OUT / "habits.csv").exists():
        return "Planted minorities and honest models (`python benchmarks/atlas.py habits`): not measured yet.\n"
    table = pd.read_csv(OUT / "habits.csv")
    rows = ["| marked | models | Precision@10 | SpRAy's rule | random | flagged |\n|---|---|---|---|---|---|\n"]
    for level, own in table.groupby("level"):
        found = [f"{own[c].mean():.2f}" if level else "" for c in ("p10", "spray", "random")]
        rows.append(f"| {level} % | {len(own)} | {' | '.join(found)} | {int((own.flagged > 0).sum())} |\n")
    return "".join(rows)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
