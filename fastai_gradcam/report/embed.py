"""Texts, data and pictures as a page holds them that loads nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from .._run.files import image_bytes
from .numbers import base64

__all__ = ["filled", "text_of", "uri_of"]


def text_of(words: str) -> str:
    "A name, which need not be valid text, as a browser can read it."
    return words.encode("utf-8", "replace").decode()


def filled(template: str, styles: Sequence[str], scripts: Sequence[str], data: Any, **words: Any) -> str:
    "The page `template` of `static`, with styles and scripts in their order, and the data that the scripts read."
    sources = PackageLoader(__package__, "static")
    env = Environment(loader=sources, autoescape=True)
    style = "\n".join(sources.get_source(env, f"{name}.css")[0] for name in styles)
    parts = "\n".join(sources.get_source(env, f"{name}.js")[0] for name in scripts)
    script = f"(() => {{\n'use strict';\n{parts}\n}})();"
    return env.get_template(template).render(
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(_json(data)),
        **words,
    )


def _hash(text: str) -> str:
    "A script or style as the page's own rules name it."
    return "sha256-" + base64(hashlib.sha256(text.encode()).digest())


def _json(data: Any) -> str:
    "JSON that no label can break out of a script element with (non-ASCII, U+2028 and surrogates are escaped, too)."
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def uri_of(image: Image.Image, kind: str, **options: Any) -> str:
    return f"data:image/{kind.lower()};base64,{base64(image_bytes(image, kind, **options))}"
