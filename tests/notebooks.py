"""The example notebooks: run as a reader runs them, and stored with what they showed.

python tests/notebooks.py [NAME…]     runs them all, or those named, and stores them with their outputs
"""

import asyncio
import base64
import io
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from processes import environment

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
AT_ONCE = 2
SECONDS_PER_CELL = 300


@dataclass
class Executed:
    """A notebook after its run in `folder`; `pictures`: of each place that showed JPEGs all of them, one after the
    other.
    """

    notebook: nbformat.NotebookNode
    folder: Path | None = None
    pictures: dict[str, list[str]] = field(default_factory=dict)


class _Watching(NotebookClient):
    "Keeps what is replaced in place, of which the notebook has the last only."

    def __init__(self, executed: Executed, **kwargs):
        super().__init__(executed.notebook, **kwargs)
        self.executed = executed

    def process_message(self, msg, cell, cell_index):
        content = msg["content"]
        if msg["msg_type"] in ("display_data", "update_display_data") and "image/jpeg" in content["data"]:
            # One that cannot be replaced has no name.
            place = content.get("transient", {}).get("display_id") or f"unnamed {len(self.executed.pictures)}"
            self.executed.pictures.setdefault(place, []).append(content["data"]["image/jpeg"])
        return super().process_message(msg, cell, cell_index)


def execute(names: list[str], folder: Path, first: str = "") -> dict[str, Executed]:
    """Run the notebooks below `folder`, each in a folder and a kernel of its own, without a network.

    `first`: what a kernel runs before its notebook. Raises `CellExecutionError` with the cell's traceback where a cell
    fails.
    """
    startup = folder / "ipython/profile_default/startup/first.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(first)
    found = {name: Executed(nbformat.read(EXAMPLES / name, as_version=4)) for name in names}
    asyncio.run(_execute(found, folder))
    return found


async def _execute(found: dict[str, Executed], folder: Path) -> None:
    free = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, executed: Executed) -> None:
        async with free:
            place = folder / Path(name).stem
            place.mkdir(parents=True)
            executed.folder = place
            client = _Watching(
                executed, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(place)}}
            )
            await client.async_execute(env=_environment(folder))
            _join_texts(executed.notebook)

    await asyncio.gather(*(one(name, executed) for name, executed in found.items()))


def _join_texts(notebook: nbformat.NotebookNode) -> None:
    "The text that a cell printed comes in as many parts as the machine happened to send."
    for cell in notebook.cells:
        joined: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if joined and "stream" == output.output_type == joined[-1].output_type and joined[-1].name == output.name:
                joined[-1].text += output.text
            else:
                joined.append(output)
        if "outputs" in cell:
            cell.outputs = joined


def _environment(folder: Path) -> dict[str, str]:
    # A notebook has its own way to show a figure. Warnings of other libraries name files of this machine.
    own = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONWARNINGS": "ignore"}
    return environment(IPYTHONDIR=str(folder / "ipython"), **own)


def stored(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "The notebook as it is kept: without times and ids of this one run, its pictures in 256 colours."
    for cell in notebook.cells:
        cell.metadata.clear()
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_finished_bar(output)]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def is_finished_bar(output: nbformat.NotebookNode) -> bool:
    "Whether it is what is left of a progress bar, which is there on slow machines only."
    return output.get("data", {}).get("text/html") == ""


def _small(png: str) -> str:
    data = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")


def machine_paths(text: str) -> list[str]:
    "Whatever looks like a path of the machine that the notebook ran on."
    return re.findall(r"(?<![\w.:/<\\-])/(?:home|root|tmp|usr|opt|work|var|Users|private|mnt)/[^\s\"'<]*", text)


if __name__ == "__main__":
    chosen = sys.argv[1:] or sorted(p.name for p in EXAMPLES.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        for name, executed in execute(chosen, Path(folder)).items():
            nbformat.write(stored(executed.notebook), EXAMPLES / name)
            print(name, (EXAMPLES / name).stat().st_size // 1000, "kB")
