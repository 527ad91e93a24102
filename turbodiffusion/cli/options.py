"""The options and arguments of the commands: those of a request derive from its fields, the others are here, once.

A command names what it takes (`@takes("file", "json")`) and gets values: text is read by the option's specification,
so that what is wrong with it is told in one line, in the language of the moment.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from turbodiffusion.errors import MachineError, RequestError
from turbodiffusion.files import check_name
from turbodiffusion.request import FieldSpec, field_specs, unknown_choice
from turbodiffusion.texts import LANGUAGES, text

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class Option:
    """One option or argument: what it says of itself, and how it is written."""

    spec: FieldSpec
    flags: str = ""  # "--ode/--sde"; none: an argument
    of_request: bool = False  # what is not given stays None, and the request checks the rest

    @property
    def placeholder(self) -> str:
        """What stands for a value in a help line; none for a switch."""
        if self.spec.placeholder or self.spec.type is bool:
            return self.spec.placeholder
        return "KIND" if self.spec.choices else {int: "N", float: "X"}.get(self.spec.type, "TEXT")

    def describe(self) -> str:
        """Return the help sentence with what it applies to, its choices or range, and the defaults."""
        spec, parts = self.spec, [self.spec.help]
        if spec.applies != "all":
            parts.append(text(f"applies.{spec.applies}"))
        if spec.choices:
            parts.append(text("option.choices", choices=", ".join(spec.choices)))
        elif spec.low is not None and spec.high is not None and spec.high <= 1000:
            parts.append(text("option.range", low=spec.low, high=spec.high))
        if defaults := self._defaults():
            parts.append(text("option.default", values=defaults))
        return str(text("option.gap")).join(map(str, parts))

    def _defaults(self) -> str:
        if self.spec.type is bool or self.spec.default is MISSING:
            return ""
        if self.spec.default is not None:
            return f"{self.spec.default}"
        return defaults_of_models(self.spec)

    def read(self, word: str | bool | None) -> Any:
        """Return the value that a word of the command line stands for; None: it was not given."""
        kind, name = self.spec.type, self.flags.split("/")[0] or self.spec.name
        if word is None and not self.of_request and self.spec.default is not MISSING:
            word = self.spec.default
        if word is None or isinstance(word, bool):
            return word
        if self.spec.placeholder in ("FILE", "FOLDER"):
            return _path(name, word)
        if kind is str:
            if self.spec.choices and not self.of_request and word not in self.spec.choices:
                raise unknown_choice(self.spec.name, word, self.spec.choices)
            return word
        try:
            value = kind(word)
        except ValueError:  # also of an integer of thousands of digits
            value = math.nan
        if not math.isfinite(value):
            raise RequestError("option.not_int" if kind is int else "option.not_float", option=name, value=word)
        return value


def _path(name: str, word: str) -> Path:
    if not word:
        raise RequestError("option.no_path", option=name)
    try:
        return check_name(Path(word).expanduser())
    except RuntimeError:
        raise RequestError("option.no_home", option=name, path=word) from None


def check_device(name: str) -> str:
    """Return a device's name if it is one. Raises MachineError; whether the device is there is PyTorch's to say."""
    if not _DEVICE.fullmatch(name):
        raise MachineError("option.unknown_device", name=name)
    return name


def defaults_of_models(spec: FieldSpec) -> str:
    """Return "81; demo 33": first what most models have, then those apart by name."""
    by_value: dict[Any, list[str]] = {}
    for model, value in spec.model_defaults.items():
        by_value.setdefault(value, []).append(model)
    most = max(by_value, key=lambda value: len(by_value[value]), default=None)
    common = [f"{most:g}" if isinstance(most, float) else str(most)] if len(by_value.get(most, ())) > 1 else []
    apart = [
        f"{model} {value:g}" if isinstance(value, float) else f"{model} {value}"
        for value, models in by_value.items()
        if not common or value != most
        for model in models
    ]
    return "; ".join([*common, *apart])


def _own(
    name: str,
    type: type,
    group: str,
    flags: str,
    *,
    default: Any = None,
    choices: tuple[str, ...] = (),
    placeholder: str = "",
) -> Option:
    spec = FieldSpec(name, type, default, text(f"option.{name}"), group, choices=choices, placeholder=placeholder)
    return Option(spec, flags)


def _of_request(spec: FieldSpec) -> Option:
    switch = {"ode": "--ode/--sde"}
    flags = "" if spec.name == "prompt" else switch.get(spec.name, f"--{spec.name.replace('_', '-')}")
    return Option(spec, flags, of_request=True)


_REQUEST = tuple(_of_request(spec) for spec in field_specs())
_OWN = (
    _own("prompts_file", str, "what", "--prompts-file", placeholder="FILE"),
    _own("redo", bool, "run", "--redo", default=False),
    _own("recipe", str, "how", "--recipe", placeholder="NAME"),
    _own("device", str, "run", "--device", default="auto", placeholder="NAME"),
    _own("offload_text", str, "run", "--offload-text", default="auto", choices=("auto", "on", "off")),
    _own("max_memory", float, "run", "--max-memory", placeholder="GIB"),
    _own("vae", str, "run", "--vae", placeholder="FILE"),
    _own("text_encoder", str, "run", "--text-encoder", placeholder="FILE"),
    _own("tokenizer", str, "run", "--tokenizer", placeholder="FILE"),
    _own("output", str, "run", "--output", default="outputs", placeholder="FOLDER"),
    _own("contact_sheet", bool, "run", "--contact-sheet", default=False),
    _own("quiet", bool, "run", "--quiet", default=False),
    _own("lang", str, "run", "--lang", choices=LANGUAGES, placeholder="|".join(LANGUAGES)),
    _own("file", str, "what", "", default=MISSING, placeholder="FILE"),
    _own("json", bool, "what", "--json", default=False),
    _own("source", str, "what", "", default=MISSING, placeholder="FILE"),
    _own("target", str, "what", "", default=MISSING, placeholder="FILE"),
    _own("quantize", str, "how", "--quantize", placeholder="KIND"),
    _own("full", bool, "run", "--full", default=False),
    _own("report", str, "run", "--json", placeholder="FILE"),
    _own("model_name", str, "what", "", placeholder="NAME"),
    _own("group", str, "what", "", placeholder="GROUP"),
    _own("check", str, "what", "--check", placeholder="FILE"),
    _own("version", bool, "run", "--version", default=False),
)
OPTIONS = {
    **{option.spec.name: option for option in (*_REQUEST, *_OWN)},
    "prompt_option": Option(replace(_REQUEST[0].spec, default=None), "--prompt", of_request=True),
}

FIELDS = tuple(option.spec.name for option in _REQUEST)
MACHINE = ("device", "offload_text", "max_memory")
PARTS = ("vae", "text_encoder", "tokenizer")  # own files for what models share
_BEFORE_STEPS = FIELDS.index("num_steps")
MAKING = (
    *FIELDS[1:_BEFORE_STEPS],
    "recipe",
    *FIELDS[_BEFORE_STEPS:],
    *MACHINE,
    *PARTS,
    *("output", "contact_sheet", "quiet"),
)


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, a function of the context and of values by these names, its options and arguments."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        def read(context: typer.Context, **words: Any) -> None:
            command(context, **{name: OPTIONS[name].read(words[name]) for name in names})

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        read.__signature__ = inspect.Signature([context, *map(_parameter, names)])  # type: ignore[attr-defined]
        read.__name__ = command.__name__
        return read

    return wrap


def _parameter(name: str) -> inspect.Parameter:
    option = OPTIONS[name]
    needed = option.spec.default is MISSING and name != "prompt"
    kind: Any = bool | None if option.spec.type is bool else str if needed else str | None
    if option.flags:
        form: Any = typer.Option(option.flags, metavar=option.placeholder, show_default=False)
    else:
        form = typer.Argument(
            metavar=option.placeholder if option.spec.placeholder else name.upper(), show_default=False
        )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if needed else None,
        annotation=Annotated[kind, form],
    )
