"""The prose of code and pages: no sentence makes its reader wait for the verb."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fastai_gradcam", "tests", "benchmarks", "docs", "examples", ".ci")
FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md") and path.name != "api.md" and "__pycache__" not in path.parts
) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]

# "Of the two, …" and "What is asked is …"; a question may begin so, and so may a heading or a cell of a table.
BARE = re.compile(r"(?:^|(?<=[.:;!?] )|(?<=\n\n))(?:Of|What) (?:[^.?!:]|\.\w)*[.!:]", re.M)


def paragraphs(path):
    "Docstrings and runs of comments of a module; the paragraphs of a page."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^(```.*?^```|#.*?$|\|.*?$)", "", text, flags=re.M | re.S)
        yield from re.split(r"\n\s*\n|\n[-*] ", text)
        return
    comments, last = [], None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if last is not None and token.start[0] != last + 1:
                yield "\n".join(comments)
                comments = []
            comments.append(token.string.lstrip("# "))
            last = token.start[0]
        elif token.type == tokenize.STRING and token.line.lstrip().startswith(token.string[:3]):
            yield from re.split(r"\n\s*\n|\n\s*- ", token.string.strip("\"'"))
    yield "\n".join(comments)


def bare(paragraph):
    return BARE.findall(re.sub(r"\s+", " ", paragraph.strip()) + ".")


@pytest.mark.parametrize("text", ["Of several, the last.", "It is one.\n  What is said is kept.", "So: Of no use."])
def test_a_bare_beginning_is_found(text):
    assert bare(text)


@pytest.mark.parametrize("text", ["What does it cost? Nothing.", "It is out of order. It says what it is."])
def test_a_question_and_the_middle_of_a_sentence_are_not(text):
    assert not bare(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_begins_with_a_bare_of_or_what(path):
    assert [found for paragraph in paragraphs(path) for found in bare(paragraph)] == []
