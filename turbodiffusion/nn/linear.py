"""Linear layers of a transformer block, in floating point or 8 bits, chosen at construction; layers fused as one.

The kinds of `WanConfig.quant_linear`: "off" is floating point; "int8_block" is the published 8-bit format, one scale
per 128 x 128 block; "int8_row" and "fp8_row" have one scale per token of the activations and one per output feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbodiffusion.nn.autocast import no_autocast
from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row
from turbodiffusion.ops.linear.int8 import (
    BLOCK,
    dequantize_int8_block,
    int8_block_linear,
    int8_row_linear,
    quantize_int8_block,
    quantize_int8_row,
)
from turbodiffusion.ops.linear.per_token import per_token_linear

# Activations in 8 bits: int8 or float8_e4m3fn [..., K] and their scale per token, float32 [...].
Quantized = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Format:
    weight_name: str
    dtype: torch.dtype
    by_block: bool  # one scale per block of the weight, else per output feature
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    multiply: Callable[..., Tensor]


_FORMATS = {
    "int8_block": _Format("int8_weight", torch.int8, True, quantize_int8_block, int8_block_linear),
    "int8_row": _Format("int8_weight", torch.int8, False, quantize_int8_row, int8_row_linear),
    "fp8_row": _Format("fp8_weight", torch.float8_e4m3fn, False, quantize_fp8_row, fp8_row_linear),
}
# The kinds with per-token scales, whose products take activations that are rounded already, and the dtype of those.
PER_TOKEN_DTYPES = {kind: form.dtype for kind, form in _FORMATS.items() if not form.by_block}


class QuantizedLinear(nn.Module):
    """Map x [..., in_features] to [..., out_features] in 8 bits; for inference, without gradient.

    State: `int8_weight` (or `fp8_weight`) [out, in], float32 `scale` ("int8_block": one per 128 x 128 block; else one
    per output feature) and `bias`. All zero until `load_weight`, `load_state_dict` or `reset_parameters`. impl: of the
    op, "reference" or "triton". Raises ValueError for an unknown kind.
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
        impl: str = "reference",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in _FORMATS:
            raise ValueError(f"8-bit linear kind {kind!r} is not one of {', '.join(_FORMATS)}")
        self.kind, self.impl, self.in_features, self.out_features = kind, impl, in_features, out_features
        self._format = _FORMATS[kind]
        scales = (-(-out_features // BLOCK), -(-in_features // BLOCK)) if self._format.by_block else (out_features,)
        weight = torch.zeros(out_features, in_features, device=device, dtype=self._format.dtype)
        self.register_buffer(self._format.weight_name, weight)
        self.register_buffer("scale", torch.zeros(scales, device=device, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a random weight (Xavier uniform) and zero the bias, for measurements without a checkpoint."""
        self.load_weight(nn.init.xavier_uniform_(self.scale.new_empty(self.out_features, self.in_features)))
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
        self.values.copy_(quantized)
        self.scale.copy_(scale)

    @property
    def values(self) -> Tensor:
        """Return the 8-bit weight [out, in]."""
        return self.get_buffer(self._format.weight_name)

    def float_weight(self) -> Tensor:
        """Return the weight that the 8-bit one stands for, float32 [out, in]."""
        if self._format.by_block:
            return dequantize_int8_block(self.values, self.scale)
        return self.values.float() * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.values, self.scale, self.bias)

    def multiply(self, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Apply the op of this layer's kind and impl to any tensors."""
        with no_autocast(x.device):  # the op states its own number formats
            return self._format.multiply(x, values, scale, bias, impl=self.impl)

    def forward_quantized(
        self,
        x8: Quantized,
        dtype: torch.dtype,
        *,
        gate_BO: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Compute `residual + gate * forward` in `dtype`, of an input that is rounded already.

        For the kinds of PER_TOKEN_DTYPES. x8: from `quantize_per_token` or a quantized norm.
        """
        return per_token_linear(
            *x8,
            self.values,
            self.scale,
            self.bias,
            dtype=dtype,
            gate_BO=gate_BO,
            residual=residual,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kind={self.kind}"


def linear(
    in_features: int,
    out_features: int,
    *,
    kind: str,
    impl: str = "reference",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build an nn.Linear for kind "off" (whatever `impl`), else a QuantizedLinear. ValueError for an unknown kind."""
    if kind == "off":
        return nn.Linear(in_features, out_features, device=device, dtype=dtype)
    return QuantizedLinear(in_features, out_features, kind=kind, impl=impl, device=device, dtype=dtype)


@torch.no_grad()
def fuse_linears(layers: Sequence[nn.Module]) -> None:
    """Lay the tensors of layers that read one input side by side in memory, so that one product serves all.

    Every layer keeps its tensors, by their names, as views of the fused ones. Layers that lie so already, because
    they were given the tensors of fused ones, stay as they are. In "int8_block" each but the last must have outputs in
    whole blocks of 128, or scales would span the rows of two.
    """
    for name in _tensor_names(layers[0]):
        parts = [getattr(layer, name) for layer in layers]
        if _side_by_side(parts):
            continue
        whole = parts[0].new_empty((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
        slices = whole.split([part.shape[0] for part in parts])
        for layer, part, view in zip(layers, parts, slices, strict=True):
            view.copy_(part)
            setattr(layer, name, nn.Parameter(view, part.requires_grad) if isinstance(part, nn.Parameter) else view)


def fused_weights(layers: Sequence[nn.Module]) -> list[Tensor]:
    """Return the weight (and scale) and bias over all outputs of layers that `fuse_linears` laid side by side.

    Raises RuntimeError where they do not lie so: tensors were replaced since.
    """
    found = []
    for name in _tensor_names(layers[0]):
        parts = [getattr(layer, name).detach() for layer in layers]
        if not _side_by_side(parts):
            raise RuntimeError(f"the layers' {name} do not lie side by side: join them again after loading")
        found.append(
            parts[0].as_strided((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].stride())
        )
    return found


def fused_linear(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Compute the outputs of fused layers side by side, [..., sum of outputs]."""
    first = layers[0]
    if isinstance(first, QuantizedLinear):
        return first.multiply(x, *fused_weights(layers))
    return F.linear(x, *fused_weights(layers))


def fused_linear_quantized(layers: Sequence[nn.Module], x8: Quantized, dtype: torch.dtype) -> Tensor:
    """Compute `fused_linear` in `dtype`, of an input that is rounded already, for the kinds of PER_TOKEN_DTYPES."""
    return per_token_linear(*x8, *fused_weights(layers), dtype=dtype, impl=as_quantized(layers[0]).impl)


def as_quantized(layer: nn.Module) -> QuantizedLinear:
    """Return the layer, as what it must be for the caller."""
    assert isinstance(layer, QuantizedLinear), type(layer)
    return layer


def _tensor_names(layer: nn.Module) -> list[str]:
    """Weight first, bias last."""
    names = [name for name, _ in (*layer.named_buffers(recurse=False), *layer.named_parameters(recurse=False))]
    return sorted(names, key="bias".__eq__)


def _side_by_side(parts: Sequence[Tensor]) -> bool:
    offset = parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == parts[0].untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.storage_offset() == offset):
            return False
        offset += part.numel()
    return True
