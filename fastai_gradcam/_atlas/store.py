"""The atlas's folder: a plan, parts that are whole or not there, and a manifest that is written last."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import GradCAMError, NoFileError
from .._run.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURED", "NUMBERS", "ROW_COLUMNS", "WORDS", "Plan", "Store", "checksum", "image_file"]

WORDS = ("name", "label", "target", "pred")
MEASURED = "evidence negative_share entropy concentration border_share centroid_y centroid_x".split()
NUMBERS = ["prob", "pred_prob", "correct", "loss", *MEASURED, "mask_share", "pointing_hit", "peak"]
ROW_COLUMNS = ["index", *WORDS, *NUMBERS]

_MOST_IN_A_PART, _PARTS = 1024, 64


def image_file(index: int) -> str:
    return f"images/{index:08d}.jpg"


@dataclass(frozen=True)
class Plan:
    """The settings that all processes of one atlas share; two that differ do not belong together.

    `images`: of the data set. `part`: images in each part but the last, a multiple of the batch size `bs`, so that
    batches are the same whoever makes a part. `space`: of a map. `weights`: a checksum of the model's.
    """

    images: int
    part: int
    bs: int
    layer: str
    space: list[int]
    target: str
    method: str
    weights: str
    data: str
    root: str | None = None
    vocab: list[str] | None = None
    arch: str | None = None

    @property
    def parts(self) -> int:
        return -(-self.images // self.part)

    def indices(self, part: int) -> range:
        "The images of a part."
        return range(part * self.part, min(self.images, (part + 1) * self.part))

    @staticmethod
    def part_for(images: int, bs: int) -> int:
        "How many images a part holds: enough parts to share between processes, and none too large for memory."
        return bs * max(1, min(_MOST_IN_A_PART // bs, -(-images // (_PARTS * bs))))


@dataclass(frozen=True)
class Store:
    "The files of the atlas in the folder `path`."

    path: Path
    _suffix: str = field(default_factory=lambda: "parquet" if find_spec("pyarrow") else "csv")

    # --- the plan and the manifest

    def plan(self) -> Plan:
        """Raises `NoFileError` where there is no atlas, `GradCAMError` where its plan cannot be read."""
        file = self.path / "plan.json"
        if not file.is_file():
            raise NoFileError(f"There is no atlas in {str(self.path)!r}: it has no plan.json.")
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return Plan(**{f.name: found[f.name] for f in fields(Plan)})
        except (ValueError, KeyError, TypeError) as error:
            raise GradCAMError(f"The atlas {str(self.path)!r} cannot be read: its plan.json is damaged.") from error

    def begin(self, plan: Plan) -> None:
        """Write the plan, or compare it with the one that is there. Raises `GradCAMError` where they differ."""
        (self.path / "parts").mkdir(parents=True, exist_ok=True)
        (self.path / "images").mkdir(exist_ok=True)
        if not (self.path / "plan.json").exists():
            write_whole(self.path / "plan.json", json.dumps(asdict(plan), ensure_ascii=False, indent=1).encode())
            return
        before, now = asdict(self.plan()), asdict(plan)
        for key in ("images", "bs", "layer", "space", "target", "method", "weights", "data"):
            if before[key] != now[key]:
                raise GradCAMError(
                    f"The atlas {str(self.path)!r} was begun with other settings: {key} was {before[key]!r}, and is "
                    f"{now[key]!r}. Give another name=."
                )

    def manifest(self) -> dict[str, Any] | None:
        "The manifest, `None` as long as the atlas is not finished."
        try:
            return json.loads((self.path / "atlas.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def finish(self, facts: Mapping[str, Any]) -> None:
        write_whole(self.path / "atlas.json", json.dumps(dict(facts), ensure_ascii=False, indent=1).encode())

    # --- parts

    def _maps(self, part: int) -> Path:
        return self.path / f"parts/{part:05d}.npz"

    def has(self, part: int) -> bool:
        return self._maps(part).exists()

    def write(self, part: int, rows: pd.DataFrame, maps: np.ndarray, features: np.ndarray) -> None:
        "A part; its maps come last, and where they are the part is whole. The maps are in shares of their peaks."
        file = self._maps(part).with_suffix(f".{self._suffix}")
        text = rows.to_parquet(index=False) if self._suffix == "parquet" else rows.to_csv(index=False).encode()
        write_whole(file, text)
        data = io.BytesIO()
        np.savez(data, maps=maps.astype(np.float16), features=features.astype(np.float16))
        write_whole(self._maps(part), data.getvalue())

    def rows(self, part: int) -> pd.DataFrame:
        "The rows of a part, `ROW_COLUMNS`. Raises `GradCAMError` where they cannot be read."
        import pandas as pd

        file = self._maps(part).with_suffix(".parquet")
        try:
            if file.exists():
                rows = pd.read_parquet(file)
            else:
                file = file.with_suffix(".csv")
                # A class may be called NA.
                kinds: dict[str, Any] = {"index": "int64", **dict.fromkeys(WORDS, "str")}
                rows = pd.read_csv(file, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, ""), dtype=kinds)
        except Exception as error:
            raise GradCAMError(f"The part {file.name!r} of the atlas {str(self.path)!r} cannot be read.") from error
        if list(rows.columns) != ROW_COLUMNS:
            raise GradCAMError(f"The part {file.name!r} of the atlas {str(self.path)!r} has other columns.")
        rows[NUMBERS] = rows[NUMBERS].astype("float32")
        rows[list(WORDS)] = rows[list(WORDS)].astype("object").fillna("")
        return rows

    def arrays(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        "Maps `(n, h, w)` in shares of their peaks and features `(n, f)`, float16. Raises as `rows`."
        try:
            with np.load(self._maps(part)) as found:
                return found["maps"], found["features"]
        except Exception as error:
            name = self._maps(part).name
            raise GradCAMError(f"The part {name!r} of the atlas {str(self.path)!r} cannot be read.") from error

    def each(self, parts: list[int]) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        "Where the rows of a part stand in the table, its maps and features; one part after the other."
        start = 0
        for part in parts:
            maps, features = self.arrays(part)
            yield slice(start, start + len(maps)), maps, features
            start += len(maps)


def checksum(parts: Iterable[bytes]) -> str:
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return f"{total:08x}"
