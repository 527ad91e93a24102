"""The umT5 text encoder, its tokenizer and the cleaning of prompts, as Wan uses them.

`umt5.py` has the layers; this file has what Wan adds: prompts are cleaned, cut and padded to `text_len` tokens, and
prompt embeds past a prompt's end are zero. And it makes a prompt's encoding quick: padding is cut before it is
computed, and a GPU replays the hundreds of launches of a repeated length as one graph.

sentencepiece and ftfy are imported where they are used: a command that only prints help, or training from prompts that
are clean already, should not pay for them or need them.

Suffixes: B batch, S text tokens, E d_model.
"""

import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from turbodiffusion.config import TextConfig
from turbodiffusion.errors import CheckpointError
from turbodiffusion.files import write_file
from turbodiffusion.models.cuda_graphs import CudaGraphCache
from turbodiffusion.models.offload import LayerOffload
from turbodiffusion.models.umt5 import BUCKETS, Stack, empty_embedding, init_weights, relative_position_buckets

__all__ = ["TextConfig", "TextEncoder", "Tokenizer", "clean_prompt", "train_tokenizer"]

WORD_END = "||"  # no piece reaches across it, in the text that a vocabulary is trained on
BETWEEN_HAN = r"(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])"
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # umT5's; it has no token for the beginning of a text
# Prompts are padded to the first of these that holds them: few shapes to keep graphs of, little padding.
LENGTHS = (64, 128, 256, 512)


def clean_prompt(text: str) -> str:
    """Mend broken Unicode (ftfy), resolve HTML entities twice and make each run of white space one blank."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class Tokenizer:
    """Turn prompts into ids by a SentencePiece vocabulary with umT5's special ids.

    Raises CheckpointError when `path` is not a SentencePiece model or numbers its special tokens differently.
    """

    def __init__(self, path: str | Path, text_len: int = 512, *, model: bytes | None = None):
        """Read a vocabulary. model: its bytes, where `path` is a file that only has it inside."""
        from sentencepiece import SentencePieceProcessor

        self.path, self.text_len = Path(path), text_len
        try:
            # The bytes, not the path: SentencePiece prints a complaint of its own about a path it cannot open.
            self._pieces = SentencePieceProcessor(model_proto=self.path.read_bytes() if model is None else model)
        except (OSError, RuntimeError) as error:
            raise CheckpointError("model.vocabulary", path=path, reason=str(error)) from None
        special = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if special != (PAD_ID, EOS_ID, UNK_ID):
            raise CheckpointError(
                "model.special_pieces", path=path, found=str(special), expected=str((PAD_ID, EOS_ID, UNK_ID))
            )

    @property
    def vocab_size(self) -> int:
        """Count the pieces, special ones included; an encoder's `vocab_size` may be larger, never smaller."""
        return self._pieces.vocab_size()

    def __call__(self, prompts: Sequence[str], *, clean: bool = True) -> tuple[Tensor, Tensor]:
        """Return ids and mask, int64 [B, text_len] each; 1 in the mask marks a token.

        `</s>` ends every prompt, cut or not. `clean=False` leaves out `clean_prompt`, for captions that a program
        wrote.
        """
        ids_BS = torch.full((len(prompts), self.text_len), PAD_ID, dtype=torch.int64)
        mask_BS = torch.zeros_like(ids_BS)
        for row, prompt in enumerate(prompts):
            pieces = self._pieces.encode(clean_prompt(prompt) if clean else prompt)
            ids = [*pieces[: self.text_len - 1], EOS_ID]
            ids_BS[row, : len(ids)] = torch.tensor(ids)
            mask_BS[row, : len(ids)] = 1
        return ids_BS, mask_BS

    def lost(self, prompt: str) -> tuple[int, str]:
        """Return how many tokens a prompt has, `</s>` with them, and the words that a prompt of so many loses."""
        pieces = self._pieces.encode(clean_prompt(prompt))
        return len(pieces) + 1, self._pieces.decode(pieces[self.text_len - 1 :]).strip()


class TextEncoder(nn.Module):
    """Encode token ids to prompt embeds by umT5's encoder stack.

    The state dict has transformers' names, the token table once, as `shared.weight`.

    Without a checkpoint the weights are random, spread as transformers spreads them. `device="meta"` allocates nothing.
    After `offload` the weights are in CPU memory and on the GPU two layers at a time, while a prompt is encoded.
    """

    def __init__(
        self, config: TextConfig, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ):
        super().__init__()
        self.config = config
        self._offloaded: LayerOffload | None = None
        self._graphs = CudaGraphCache()
        self._captured_at = 0
        self._bucket_tables: dict[tuple[int, torch.device], Tensor] = {}
        with torch.device(device or "cpu"):
            self.shared = empty_embedding(config.vocab_size, config.d_model)
            self.encoder = Stack(config)
            if not self.shared.weight.is_meta:
                nn.init.normal_(self.shared.weight)
                init_weights(self.encoder)
        self.to(dtype)

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Encode token ids [B, S] to prompt embeds [B, S, E], in the weights' dtype; 0 where mask is 0.

        Differentiable in the weights. Under torch.inference_mode on a GPU, repeated shapes replay a CUDA graph; it is
        dropped when the encoder moves or gets other tensors.
        """
        length = self._length(mask_BS)
        ids, mask = ids_BS[:, :length], mask_BS[:, :length]
        if ids.is_cuda and torch.is_inference_mode_enabled() and self._offloaded is None:
            address = next(self.parameters()).data_ptr()
            if address != self._captured_at:
                self._clear_caches()
                self._captured_at = address
            prompt_embeds_BSE = self._graphs("encode", self._encode, ids, mask)
        else:
            prompt_embeds_BSE = self._encode(ids, mask)
        return pad(prompt_embeds_BSE, (0, 0, 0, ids_BS.shape[1] - length))

    def offload(self, device: torch.device | str) -> None:
        """Keep the weights in CPU memory from now on and compute on `device`: the same operations, so the same bits.

        The token table stays in CPU memory, where ids are looked up. For inference; the encoder cannot be moved again.
        """
        self._clear_caches()
        self.shared.to("cpu")
        self.encoder.final_layer_norm.to(device)
        self._offloaded = LayerOffload([*self.encoder.block], torch.device(device))

    def _length(self, mask_BS: Tensor) -> int:
        """Return the first of LENGTHS that holds the last token: padding takes part in nothing, so it is cut."""
        whole = mask_BS.shape[1]
        if whole <= LENGTHS[0]:
            return whole
        positions = torch.arange(1, whole + 1, device=mask_BS.device)
        needed = int((positions * (mask_BS != 0)).max())
        return next((length for length in LENGTHS if needed <= length < whole), whole)

    def _encode(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        pairs_SS = self._buckets(ids_BS.shape[1], ids_BS.device)
        # One more bucket stands for what is masked out.
        buckets_BSS = pairs_SS.masked_fill(mask_BS[:, None] == 0, BUCKETS)
        x_BSE = self.shared(ids_BS.to(self.shared.weight.device)).to(ids_BS.device)
        for block in self.encoder.block if self._offloaded is None else self._offloaded.on_device():
            x_BSE = block(x_BSE, buckets_BSS)
        return self.encoder.final_layer_norm(x_BSE).masked_fill(mask_BS[..., None] == 0, 0)

    def _buckets(self, length: int, device: torch.device) -> Tensor:
        """Return the bucket of each pair of tokens, [S, S]: the same in every layer, computed once per length."""
        if torch.compiler.is_compiling():
            return relative_position_buckets(length, device)  # a constant of the compiled graph
        if (length, device) not in self._bucket_tables:
            with torch.inference_mode(False):  # a tensor of inference mode could take no part in training later
                self._bucket_tables[length, device] = relative_position_buckets(length, device)
        return self._bucket_tables[length, device]

    def _clear_caches(self) -> None:
        """Drop graphs and tables, which hold addresses of this device."""
        self._graphs.clear()
        self._bucket_tables, self._captured_at = {}, 0

    def _apply(self, fn: Any, recurse: bool = True) -> "TextEncoder":
        """Called by `to`, `cuda`, `half` and the like."""
        if self._offloaded is not None:
            raise ValueError("a text encoder that was offloaded cannot be moved")
        self._clear_caches()
        return super()._apply(fn, recurse)


def train_tokenizer(captions: Iterable[str], path: str | Path, vocab_size: int = 4096) -> None:
    """Train a SentencePiece vocabulary by byte-pair merges (arXiv 1508.07909) on captions and write it to `path`.

    A Chinese character is a piece of its own: whole phrases, which a small corpus repeats, would otherwise become
    pieces, and a new combination of known words would read as something never seen. The special ids are umT5's; a
    character not seen in training falls back to its UTF-8 bytes. The same captions give the same pieces: one thread, no
    sampling. `vocab_size` is an upper limit; a small corpus gives fewer pieces.
    """
    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(re.sub(BETWEEN_HAN, WORD_END, caption) for caption in captions),
        pretokenization_delimiter=WORD_END,
        model_writer=file,
        model_type="bpe",  # unigram would cut words that are frequent but rarely part of others
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    write_file(path, file.getvalue())
