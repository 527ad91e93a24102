"""turbodiffusion: the Wan video diffusion models, and everything that makes them fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbodiffusion.inference.pipeline import Pipeline as Pipeline
    from turbodiffusion.inference.result import Result as Result
    from turbodiffusion.request import Progress as Progress
    from turbodiffusion.request import Request as Request

__version__ = "0.1.0"
_PUBLIC = {"Pipeline": "inference.pipeline", "Request": "request", "Result": "inference.result", "Progress": "request"}
__all__ = ["Pipeline", "Progress", "Request", "Result", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `turbodiffusion.ops` alone needs nothing but PyTorch."""
    if name in _PUBLIC:
        return getattr(import_module(f"turbodiffusion.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'turbodiffusion' has no attribute {name!r}")
