"""Progress in a terminal, always on the side of the output that no script reads."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

__all__ = ["columns", "progress", "say"]


def say(options: Namespace, words: str) -> None:
    print(words, file=sys.stderr if options.json else sys.stdout, flush=True)


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    "A progress bar, if stderr is a terminal. Yields a function that takes the number of steps done so far."
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from fastprogress.fastprogress import progress_bar

    with redirect_stdout(sys.stderr):
        bar = progress_bar(range(total), leave=False)

    def advance(done: int) -> None:
        with redirect_stdout(sys.stderr):
            bar.update(done)

    advance(0)
    yield advance


def columns(lines: Sequence[Sequence[str]]) -> str:
    "Lines of cells as text in columns."
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
