"""Files on a hub: what a model needs, fetched through huggingface_hub and checked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubFile:
    """One file of a hub repository: `repo` "owner/name", `path` inside it, `role` in the model, `bytes` its size."""

    repo: str
    path: str
    role: str
    bytes: int
