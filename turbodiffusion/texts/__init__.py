"""Every sentence that a person reads, by code, in English and Chinese: errors, notices, the help of options.

`en.toml` and `zh.toml` have the same codes, "group.name", and the same parameters in braces (str.format). A parameter
may be a Text itself, or a list, whose items are joined.
"""

import os
import tomllib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
_JOIN = {"en": ", ", "zh": "、"}
_chosen: ContextVar[str | None] = ContextVar("language", default=None)


@dataclass(frozen=True)
class Text:
    """A sentence by its code and parameters; `str` renders it in the language of the moment."""

    code: str
    params: Mapping[str, Any]

    def __str__(self) -> str:
        return self.render(language())

    def render(self, lang: str) -> str:
        """Return the sentence in "en" or "zh". Raises KeyError for a code that the catalogue does not have."""
        values = {name: _rendered(value, lang) for name, value in self.params.items()}
        return catalogue(lang)[self.code].format(**values)


def text(code: str, **params: Any) -> Text:
    """Return the sentence of a code, to be rendered when it is shown."""
    return Text(code, params)


def language() -> str:
    """Return the language chosen by `set_language`, else that of LC_ALL, LC_MESSAGES or LANG: "zh" or "en"."""
    if (chosen := _chosen.get()) is not None:
        return chosen
    locale = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "zh" if locale.lower().startswith("zh") else "en"


def set_language(lang: str | None) -> None:
    """Choose the language of this thread (or task) from now on; None goes back to the environment's."""
    assert lang is None or lang in LANGUAGES
    _chosen.set(lang)


@cache
def catalogue(lang: str) -> dict[str, str]:
    """Return all sentences of a language by their codes."""
    groups = tomllib.loads((Path(__file__).parent / f"{lang}.toml").read_text(encoding="utf-8"))
    return {f"{group}.{name}": sentence for group, names in groups.items() for name, sentence in names.items()}


def _rendered(value: Any, lang: str) -> Any:
    if isinstance(value, Text):
        return value.render(lang)
    if isinstance(value, list | tuple):
        return _JOIN[lang].join(str(_rendered(item, lang)) for item in value)
    return value
