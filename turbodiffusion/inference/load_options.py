"""What to load and how: plain values that a command line, a file or another process can hold."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from turbodiffusion.errors import MachineError, RequestError


@dataclass(frozen=True)
class LoadOptions:
    """A model and how it computes. Frozen, plain and JSON, so that a server can compare, route and send it.

    model: name, folder or file. device: "auto", "cpu", "cuda", "cuda:1". dtype: "auto" (bfloat16 on a GPU, float32 on a
    CPU) or either name. attention_type, sla_topk and quant_linear are those of requests that leave them at "auto".
    kernels: "reference", "triton", or "auto" for the fastest that run here. offload_text: "on" keeps the text encoder
    in CPU memory and passes it through the GPU for a new prompt, "off" keeps it on the GPU, "auto" does where
    everything fits. max_memory: GiB of the GPU to plan for, where it is shared. vae, text_encoder, tokenizer: own files
    for these parts, else those beside the model's, else Wan's from the hub.
    """

    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    attention_type: str = "auto"
    sla_topk: float | None = None
    quant_linear: str = "auto"
    kernels: str = "auto"
    offload_text: str = "auto"
    max_memory: float | None = None
    vae: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "vae", "text_encoder", "tokenizer"):
            if isinstance(path := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(path))
        if not isinstance(self.model, str):
            raise RequestError("load.model", value=repr(self.model)[:60])
        if self.max_memory is not None:
            object.__setattr__(self, "max_memory", self._gib(self.max_memory))

    @staticmethod
    def _gib(value: Any) -> float:
        try:
            limit = float(value)
        except (TypeError, ValueError, OverflowError):
            limit = math.nan
        if not (0 < limit < math.inf):
            raise MachineError("memory.limit_not_positive", value=repr(value)[:60])
        return limit

    def to_json(self) -> str:
        """Return every field, in one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, values: str | Mapping[str, Any]) -> "LoadOptions":
        """Read what `to_json` wrote, or what a JSON parser made of it. Raises RequestError for an unknown field."""
        try:
            values = json.loads(values) if isinstance(values, str) else values
        except (ValueError, RecursionError) as error:
            raise RequestError("request.not_json", reason=str(error)) from None
        if not isinstance(values, Mapping):
            raise RequestError("request.not_object", type=type(values).__name__)
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise RequestError("load.unknown_field", name=name, known=known)
        return cls(**values)
