"""What the Wan VAE holds at once while it decodes: arithmetic over its layers, the values of their tensors summed.

Counted for the fused decoder (`models/vae/fused.py`), moment by moment. T is the frames of a chunk at some stage, C its
channels. Two frames are one pair of Winograd's, read as four transformed frames (2 T C values for T frames) and made as
four products (2 T C again). The worst moment is before the first convolution of a block at full size:

    the products of the block before, and its residual       2 T C + T C
    what the convolution is going to read                    2 T C
    their sum, the next residual                             T C
    its last two frames, remembered                          2 C

and beside it, all the time, the two frames that every causal convolution of the decoder remembers, and the weights in
the forms that the walk uses. At 832x480 a bfloat16 frame of 96 channels has 76.7 MB = 1 F; a chunk of n latent frames
has T = 4 n at full size. Remembered are 14 F there (three blocks of two convolutions, and the head), 6 F at half size
(192 channels: half an F a frame), 3.2 F at a quarter, 1.4 F below: 24.6 F. So decoding holds (24 n + 2 + 24.6) F and
0.3 GiB of weights: 3.9 GiB for n = 1, 5.7 GiB for 2.

`tests/models/test_memory/vae.py` holds this against the tensors that live in a walk. cuDNN's workspaces are not in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from turbodiffusion.config import VAEConfig

# Latent frames that may be decoded at once, the quickest to a closed mp4 first. With 4 the decoder alone is 2% faster,
# but the last 16 frames reach the mp4's encoder together: 1.15 s from prompt to mp4 on an H200, and 1.10 with 2.
CHUNKS = (2, 1)
TAPS = 27 * 3  # of the last convolution to three channels, whose products `ops/vae/taps.py` adds up


@dataclass(frozen=True)
class _Layer:
    """A layer of the decoder and the size of what it reads: `frames` at `positions` positions with `before` channels.

    kind: "block", "attention", "double" (twice the frames, then twice the height and width) or "enlarge" (without the
    frames).
    """

    kind: str
    before: int
    after: int
    frames: int
    positions: int


def chunk_sizes(config: VAEConfig, width: int, height: int, impl: str) -> tuple[int, ...]:
    """The latent frames that a chunk of such a video may have, the most first.

    No tensor may have 2^31 values, where PyTorch leaves cuDNN's fast ways. The plain walk gains nothing from more than
    one: passes over its tensors are what it waits for.
    """
    if impl == "reference":
        return (1,)
    frame, step = width * height * config.dim, config.time_factor
    return tuple(size for size in CHUNKS if size == 1 or (size * step + 2) * frame < 2**31)


def decode_bytes(config: VAEConfig, width: int, height: int, latents: int, itemsize: int, impl: str) -> int:
    """Bytes at the worst moment of decoding `latents` frames a chunk, without the VAE's own weights.

    width and height: of the video, multiples of the space factor. itemsize: bytes of a value of the VAE's dtype. impl:
    of `WanVAE`; what the plain walk holds is measured (`_plain_values`). Encoding takes less: the same stages the other
    way round, with a block less in each.
    """
    layers = list(_layers(config, width, height, latents))
    remembered = 2 * config.z_dim * layers[0].positions + 2 * config.dim * width * height
    weights = 27 * config.z_dim * layers[0].before + TAPS * config.dim
    for layer in layers:
        before, after = layer.before, layer.after
        if layer.kind == "block":
            remembered += 2 * (before + after) * layer.positions
            weights += (27 + 36) * after * (before + after)  # plain, and as Winograd's four
        elif layer.kind in ("double", "enlarge"):
            weights += 16 * before * after  # the four phases
        if layer.kind == "double":
            remembered += 2 * before * layer.positions
            weights += 6 * before**2
    chunk = latents * config.time_factor * width * height
    pictures = 2 * 3 * chunk  # this chunk's, and the one before, which its reader may still have
    if impl == "reference":
        # Of a chunk's frames at full size six tensors in the network's dtype and three of the norm's in float32.
        return itemsize * (remembered + pictures) + (6 * itemsize + 12) * chunk * config.dim
    return itemsize * (_worst_moment(layers, width * height) + remembered + pictures + weights)


def _layers(config: VAEConfig, width: int, height: int, latents: int) -> Iterator[_Layer]:
    """The decoder's, in order (`layers.Decoder`)."""
    dims = [config.dim * multiple for multiple in (config.dim_mult[-1], *reversed(config.dim_mult))]
    frames, positions = latents, width * height // config.space_factor**2
    for kind in ("block", "attention", "block"):
        yield _Layer(kind, dims[0], dims[0], frames, positions)
    for stage, (before, after) in enumerate(pairwise(dims)):
        widths = [before // 2 if stage else before] + [after] * (config.num_res_blocks + 1)
        for pair in pairwise(widths):
            yield _Layer("block", *pair, frames, positions)
        if stage < len(config.temporal_downsample):
            double = config.temporal_downsample[-1 - stage]
            yield _Layer("double" if double else "enlarge", after, after // 2, frames, positions)
            frames, positions = frames * (2 if double else 1), 4 * positions


def _worst_moment(layers: list[_Layer], pixels: int) -> int:
    """Values alive at once, without what is remembered, in any layer or in the head after them."""
    pending = layers[0].frames * layers[0].before * layers[0].positions  # what the layer before left to be added up
    worst = 0
    for layer in layers:
        moments, left = _moments(layer)
        worst = max(worst, pending + moments[0], *moments[1:])
        pending = left
    # An upsampling layer counts its picture before the enlargement; the last layer is a block, at full size.
    last = layers[-1]
    read = (last.frames + 2) * last.after * pixels
    return max(worst, pending + read + 2 * last.after * pixels, read + (last.frames + 2) * TAPS * pixels)


def _moments(layer: _Layer) -> tuple[list[int], int]:
    """Values alive at the layer's moments, beside pending ones at the first alone; and those that it leaves pending."""
    frames, before, after, positions = layer.frames, layer.before, layer.after, layer.positions
    if layer.kind == "block":
        # An odd number of frames is convolved as it is, with the two before it.
        made = 2 * frames if frames % 2 == 0 else frames
        read = 2 * frames if frames % 2 == 0 else frames + 2
        values = [
            (read + frames + 2) * before,
            (read + frames) * before + made * after,
            (frames + 2) * before + (made + read + 2) * after,
            (frames + 2) * before + (frames + read + made) * after,
        ]
        return [positions * value for value in values], (made + frames) * after * positions
    if layer.kind == "attention":
        return [2 * frames * before * positions, 7 * frames * before * positions], 2 * frames * before * positions
    twice = 2 if layer.kind == "double" else 1
    added_up = frames + 2 * (twice - 1)
    # Each of the four phases has a row and a column more than the picture.
    phases = 4 * twice * frames * after * round((1 + positions**0.5) ** 2)
    values = [(added_up + 2) * before, (added_up + 4 * frames) * before if twice == 2 else 0]
    return [*(positions * value for value in values), twice * frames * before * positions + phases], phases
