"""The documentation as data: its documents, their blocks of code, their links, and what runs the blocks."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
DOCUMENTS += sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))

_COMMENT = re.compile(r"<!--\s*(.+?)\s*-->")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its first line, and the comment in the line above its fence.

    Two kinds of comments are read: `not run: <reason>`, and `file: <name>`, for a program that a later command runs.
    """

    document: str
    language: str
    text: str
    line: int
    comment: str = ""

    def _says(self, word: str) -> str | None:
        return self.comment.removeprefix(f"{word}:").strip() if self.comment.startswith(f"{word}:") else None

    @property
    def not_run(self) -> str | None:
        return self._says("not run")

    @property
    def file(self) -> str | None:
        return self._says("file")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks_of(document: str) -> list[Block]:
    "Every fenced block. Raises `ValueError` for a block that is indented, not fenced, and for a fence without an end."
    found, lines = [], text_of(document).split("\n")
    fence, start, language, comment, before = "", 0, "", "", ""
    for number, line in enumerate(lines, 1):
        opened = re.match(r"\s*(```+|~~~+)\s*(\S*)", line)
        if fence:
            if line.strip() == fence:
                found.append(Block(document, language, "\n".join(lines[start : number - 1]), start + 1, comment))
                fence, before = "", ""
            continue
        if opened:
            fence, language, start = opened[1], opened[2], number
            said = _COMMENT.fullmatch(before.strip())
            comment = said[1] if said else ""
        # Behind a list's point, indented text belongs to the point.
        elif line.startswith("    ") and not before and not _in_a_list(lines[: number - 1]):
            raise ValueError(f"{document}:{number}: an indented block of code; fence it, and name its language")
        before = line
    if fence:
        raise ValueError(f"{document}: the fence of line {start} has no end")
    return found


def _in_a_list(before: list[str]) -> bool:
    above = [line for line in before if line.strip()]
    while above and above[-1].startswith("  "):
        above.pop()
    return bool(above) and re.match(r"([-*]|\d+\.) ", above[-1]) is not None


def prose_of(document: str) -> str:
    "The document without its fenced blocks and comments."
    text = re.sub(r"^\s*(```+|~~~+).*?^\s*\1\s*$", "", text_of(document), flags=re.M | re.S)
    return _COMMENT.sub("", text)


def links_of(document: str) -> list[str]:
    "The targets of links and pictures, outside of code."
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`", prose_of(document)))


def anchors_of(document: str) -> set[str]:
    "The names under which headings can be linked to, as GitHub makes them."
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose_of(document), flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        k, base = 0, name
        while name in found:
            k += 1
            name = f"{base}-{k}"
        found.add(name)
    return found


def execute(block: Block, names: dict) -> None:
    """Run a block of Python in `names` as a notebook's cell: values are shown. Tracebacks name the document."""
    tree = ast.parse(block.text, f"{block.document}:{block.line}")
    ast.increment_lineno(tree, block.line - 1)
    for node in tree.body:
        if isinstance(node, ast.Expr):
            show(eval(compile(ast.Expression(node.value), str(ROOT / block.document), "eval"), names))
        else:
            exec(compile(ast.Module([node], []), str(ROOT / block.document), "exec"), names)


def show(value) -> None:
    "As a notebook: what has pictures of itself must give one."
    for one in value if isinstance(value, tuple) else (value,):
        known = [kind for kind in ("_repr_png_", "_repr_jpeg_", "_repr_html_") if hasattr(one, kind)]
        assert not known or any(getattr(one, kind)() is not None for kind in known)


def commands_of(block: Block) -> list[list[str]]:
    "The commands of a block of shell, each as its words; `&&` and the end of a line divide them."
    found = []
    for line in block.text.replace("\\\n", " ").split("\n"):
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found
