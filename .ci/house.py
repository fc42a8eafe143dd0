"""Measures the house from the sources alone: size, long files and functions, circles, who imports whom.

python .ci/house.py                  this checkout
python .ci/house.py 4fa8a31 HEAD     two commits side by side
"""

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fastai_gradcam"
# The engine, in today's rooms and in those that it had before it had a folder.
ENGINE = (
    "_net",
    "_search",
    "_engine",
    "cam",
    "hooks",
    "methods",
    "targets",
    "layers",
    "space",
    "forward",
    "smoothing",
    "guard",
)


def main(commits: list[str]) -> None:
    columns = [measured(ROOT)] if not commits else [at(commit) for commit in commits]
    width = max(map(len, columns[0]))
    if commits:
        print(" " * width, *(f"{commit:>34}" for commit in commits))
    for name in columns[0]:
        print(f"{name:<{width}}", *(f"{column[name]:>34}" for column in columns))


def at(commit: str) -> dict[str, str]:
    "The same of another commit, unpacked into a folder that is then removed."
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", commit, PACKAGE, "tests"], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        return measured(Path(folder))


def measured(root: Path) -> dict[str, str]:
    sources = {module_of(root, path): path.read_text(encoding="utf-8") for path in (root / PACKAGE).rglob("*.py")}
    trees = {module: ast.parse(source) for module, source in sources.items()}
    lines = {module: source.count("\n") for module, source in sources.items()}
    imports = {module: imported(module, tree, set(trees)) for module, tree in trees.items()}
    functions = [
        (node.end_lineno - node.lineno + 1, f"{module.removeprefix(PACKAGE + '.')}:{node.name}")
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    files = sorted(((count, module.removeprefix(f"{PACKAGE}.")) for module, count in lines.items()), reverse=True)
    engine = sum(count for module, count in lines.items() if any(under(module, part) for part in ENGINE))
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").glob("*.py")]
    circles = circles_in(imports)
    return {
        "files": f"{len(files)}",
        "lines": f"{sum(lines.values())}",
        "longest file": "{} {}".format(*files[0]),
        "second": "{} {}".format(*files[1]),
        "files over 300 lines": f"{sum(count > 300 for count, _ in files)}",
        "longest function": "{} {}".format(*max(functions)),
        "functions over 50 lines": f"{sum(count > 50 for count, _ in functions)}",
        "lines of the engine": f"{engine}",
        "circles": f"{len(circles)} of {sum(map(len, circles))} files",
        "imports between files": f"{sum(map(len, imports.values()))}",
        "lines of tests": f"{sum(text.count(chr(10)) for text in tests)}",
        "test functions": f"{sum(text.count(f'{chr(10)}def test_') for text in tests)}",
    }


def module_of(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def under(module: str, part: str) -> bool:
    return f"{module}.".startswith(f"{PACKAGE}.{part}.")


def imported(module: str, tree: ast.Module, known: set[str]) -> set[str]:
    "The package's modules that `module` imports, in functions too, but not for type checkers alone."
    package = module if any(m.startswith(f"{module}.") for m in known) else module.rpartition(".")[0]
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in names}
    # The package's face imports lazily, by name.
    return (found & known) - {module, PACKAGE} if module != PACKAGE else set()


def circles_in(imports: dict[str, set[str]]) -> list[list[str]]:
    "Groups of modules each of which reaches all others."
    reach = {module: reached(module, imports) for module in imports}
    groups = {tuple(sorted(m for m in reach[module] if module in reach[m])) for module in imports}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def reached(module: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for other in imports.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
