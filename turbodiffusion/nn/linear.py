"""Linear layers of a transformer block, in floating point or 8 bits, chosen at construction."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from turbodiffusion.nn.autocast import no_autocast
from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row
from turbodiffusion.ops.linear.int8 import (
    BLOCK,
    int8_block_linear,
    int8_row_linear,
    quantize_int8_block,
    quantize_int8_row,
)


@dataclass(frozen=True)
class _Format:
    weight_name: str
    dtype: torch.dtype
    by_block: bool  # one scale a block of the weight, or one a row
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    multiply: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


_FORMATS = {
    "int8_block": _Format("int8_weight", torch.int8, True, quantize_int8_block, int8_block_linear),
    "int8_row": _Format("int8_weight", torch.int8, False, quantize_int8_row, int8_row_linear),
    "fp8_row": _Format("fp8_weight", torch.float8_e4m3fn, False, quantize_fp8_row, fp8_row_linear),
}
LINEAR_KINDS = ("off", *_FORMATS)


class QuantizedLinear(nn.Module):
    """x [..., in_features] to [..., out_features] with 8-bit weights and activations; for inference, without gradient.

    State: `int8_weight` (or `fp8_weight`) [out, in], float32 `scale` ("int8_block": one per 128 x 128 block, the
    published format; else one per row) and `bias`. All zero until `load_weight`, `load_state_dict` or
    `reset_parameters`. Raises ValueError for an unknown kind.
    """

    int8_weight: Tensor
    fp8_weight: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kind: str,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in _FORMATS:
            raise ValueError(f"8-bit linear kind {kind!r} is not one of {', '.join(_FORMATS)}")
        self.kind, self.in_features, self.out_features = kind, in_features, out_features
        self._format = _FORMATS[kind]
        scales = (-(-out_features // BLOCK), -(-in_features // BLOCK)) if self._format.by_block else (out_features,)
        weight = torch.zeros(out_features, in_features, device=device, dtype=self._format.dtype)
        self.register_buffer(self._format.weight_name, weight)
        self.register_buffer("scale", torch.zeros(scales, device=device, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A random weight (Xavier uniform) and a bias of zero, for measurements without a checkpoint."""
        self.load_weight(nn.init.xavier_uniform_(self.scale.new_empty(self.out_features, self.in_features)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def load_weight(self, weight_OK: Tensor) -> None:
        """Quantize a floating-point weight [out, in], on this layer's device.

        Raises ValueError for another shape, or where the layer holds no memory yet ("meta").
        """
        if tuple(weight_OK.shape) != (self.out_features, self.in_features):
            shape = [self.out_features, self.in_features]
            raise ValueError(f"the weight must be {shape}, got {list(weight_OK.shape)}")
        if self.scale.is_meta:
            raise ValueError("the layer is on the meta device; give it memory first (to_empty)")
        quantized, scale = self._format.quantize(weight_OK.to(self.scale.device))
        self.get_buffer(self._format.weight_name).copy_(quantized)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        with no_autocast(x.device):  # the op states its own number formats
            return self._format.multiply(x, self.get_buffer(self._format.weight_name), self.scale, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, kind={self.kind}"


def linear(
    in_features: int,
    out_features: int,
    *,
    kind: str,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """nn.Linear for kind "off", else a QuantizedLinear, which raises ValueError for an unknown kind."""
    if kind == "off":
        return nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
    return QuantizedLinear(in_features, out_features, kind=kind, bias=bias, device=device, dtype=dtype)
