"""The docs as a site, in build/site: the README, these pages and the notebooks, as they stand in the repository.

pip install -e ".[docs]"
python docs/make_site.py          # a page without a title, a broken link or a missing anchor fails
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
PARTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "docs",
    "examples",
    "benchmarks",
    "setup.cfg",
)


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    # Side by side as in the repository, so that links are the same there and here.
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, PAGES / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
        else:
            shutil.copy(ROOT / part, PAGES / part)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
