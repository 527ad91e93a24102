"""Parameters and bytes of networks, by arithmetic from their configurations: nothing is built.

The tests compare every count with the networks on the meta device. Bytes of files (`presets.py`) and of the memory plan
(`plan.py`) come from here alone.
"""

from itertools import pairwise

from turbodiffusion.config import PATCH, TEXT_BUCKETS, TextConfig, VAEConfig, WanConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = DTYPE_BYTES["float32"]
SCALE_BLOCK = 128  # rows and columns of a weight that share a scale in "int8_block"


def transformer_bytes(config: WanConfig, dtype: str) -> int:
    """Return the bytes of one network's tensors, its blocks' linears in `config.quant_linear`, the rest in `dtype`.

    The time path, the modulations, the norms and the head are float32 whatever the dtype (`models/wan.py`).
    """
    dim, width = config.dim, DTYPE_BYTES[dtype]
    embeddings = _linear(config.in_dim * PATCH**2, dim) + _linear(config.text_dim, dim) + _linear(dim, dim)
    time = _linear(config.freq_dim, dim) + _linear(dim, dim) + _linear(dim, 6 * dim)
    head = _linear(dim, config.out_dim * PATCH**2) + 2 * dim
    if config.image_dim is not None:
        embeddings += _linear(config.image_dim, config.image_dim) + _linear(config.image_dim, dim)
        head += 2 * config.image_dim + 2 * dim  # its two layer norms, float32 too
    return width * embeddings + FLOAT32 * (time + head) + config.num_layers * _block_bytes(config, width)


def _block_bytes(config: WanConfig, width: int) -> int:
    """One block: self-attention, cross attention and the feed-forward network."""
    dim, squares, norms = config.dim, 8, 4
    if config.image_dim is not None:  # keys and values of the image, and the norm of its keys
        squares, norms = squares + 2, norms + 1
    linears = squares * _linear_bytes(config.quant_linear, dim, dim, width)
    linears += _linear_bytes(config.quant_linear, dim, config.ffn_dim, width)
    linears += _linear_bytes(config.quant_linear, config.ffn_dim, dim, width)
    projection = _linear(config.head_dim, config.head_dim) if config.attention_type in ("sla", "sagesla") else 0
    return linears + FLOAT32 * (norms * dim + 2 * dim + 6 * dim + projection)


def _linear_bytes(kind: str, inputs: int, outputs: int, width: int) -> int:
    if kind == "off":
        return width * _linear(inputs, outputs)
    scales = -(-outputs // SCALE_BLOCK) * -(-inputs // SCALE_BLOCK) if kind == "int8_block" else outputs
    return inputs * outputs + FLOAT32 * scales + width * outputs


def text_parameters(config: TextConfig) -> int:
    """Return the number of parameters of the umT5 encoder."""
    return config.vocab_size * config.d_model + config.num_layers * text_layer_parameters(config) + config.d_model


def text_layer_parameters(config: TextConfig) -> int:
    """Return the number of parameters of one of its layers."""
    inner = config.num_heads * config.d_kv
    products = 4 * config.d_model * inner + 3 * config.d_model * config.d_ff
    return products + 2 * config.d_model + TEXT_BUCKETS * config.num_heads


def text_bytes(config: TextConfig, dtype: str) -> int:
    """Return the bytes of the text encoder's weights."""
    return DTYPE_BYTES[dtype] * text_parameters(config)


def vae_bytes(config: VAEConfig, dtype: str = "float32") -> int:
    """Return the bytes of the VAE's weights, encoder and decoder."""
    return DTYPE_BYTES[dtype] * vae_parameters(config)


def vae_parameters(config: VAEConfig) -> int:
    """Return the number of parameters of the VAE (`models/vae/layers.py`)."""
    stages = len(config.temporal_downsample)
    encoder_dims = [config.dim * multiple for multiple in (1, *config.dim_mult)]
    encoder = _conv3d(3, encoder_dims[0]) + _middle(encoder_dims[-1])
    for stage, (before, after) in enumerate(pairwise(encoder_dims)):
        encoder += sum(_residual(a, b) for a, b in pairwise([before] + [after] * config.num_res_blocks))
        if stage < stages:
            encoder += _conv(after, after, 9) + config.temporal_downsample[stage] * _conv(after, after, 3)
    encoder += encoder_dims[-1] + _conv3d(encoder_dims[-1], 2 * config.z_dim)

    decoder_dims = [config.dim * multiple for multiple in (config.dim_mult[-1], *reversed(config.dim_mult))]
    decoder = _conv3d(config.z_dim, decoder_dims[0]) + _middle(decoder_dims[0])
    for stage, (before, after) in enumerate(pairwise(decoder_dims)):
        first = before // 2 if stage else before  # upsampling halves the channels
        decoder += sum(_residual(a, b) for a, b in pairwise([first] + [after] * (config.num_res_blocks + 1)))
        if stage < stages:
            temporal = config.temporal_downsample[stages - 1 - stage]
            decoder += _conv(after, after // 2, 9) + temporal * _conv(after, 2 * after, 3)
    decoder += decoder_dims[-1] + _conv3d(decoder_dims[-1], 3)
    return encoder + decoder + _linear(2 * config.z_dim, 2 * config.z_dim) + _linear(config.z_dim, config.z_dim)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _conv(inputs: int, outputs: int, taps: int) -> int:
    return inputs * outputs * taps + outputs


def _conv3d(inputs: int, outputs: int) -> int:
    return _conv(inputs, outputs, 27)


def _residual(before: int, after: int) -> int:
    shortcut = _linear(before, after) if before != after else 0
    return before + after + _conv3d(before, after) + _conv3d(after, after) + shortcut


def _middle(dim: int) -> int:
    attention = dim + _linear(dim, 3 * dim) + _linear(dim, dim)
    return 2 * _residual(dim, dim) + attention
