"""The pages' texts, in one JSON file that can be translated."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import read_json

ENGLISH = Path(__file__).with_name("texts.json")


def load_texts(path: str | Path | None = None) -> dict[str, Any]:
    """Return the texts by section and key; `path` names a translation of `texts.json`.

    Raises:
        UserError: a text is missing, unknown, or its {placeholders} differ from the English ones.
    """
    english = read_json(ENGLISH)
    if path is None:
        return english
    texts = read_json(path)
    expected, found = _flat(english), _flat(texts if isinstance(texts, dict) else {})
    for key in [*expected, *found]:
        if key not in found or key not in expected:
            state = "missing" if key not in found else "unknown"
            raise UserError(f"{path}: text {key!r} is {state} (compare quiz/texts.json)")
        if _placeholders(found[key]) != _placeholders(expected[key]):
            names = ", ".join(sorted(_placeholders(expected[key]))) or "none"
            raise UserError(f"{path}: text {key!r}: placeholders needed: {names}")
    return texts


def _flat(texts: dict[str, Any]) -> dict[str, str]:
    flat = {}
    for section, content in texts.items():
        parts = content.items() if isinstance(content, dict) else [("", content)]
        flat |= {f"{section}.{key}".rstrip("."): str(text) for key, text in parts}
    return flat


def _placeholders(text: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError:
        return {text}
