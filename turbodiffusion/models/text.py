"""The umT5 text encoder, its tokenizer and the cleaning of prompts, as Wan uses them.

umT5 (arXiv 2304.09151) is T5 v1.1 with a relative position table in every layer. transformers holds the arithmetic;
this file holds what Wan adds: prompts are cleaned, cut and padded to `text_len` tokens, and states past a prompt's end
are zero.

transformers, sentencepiece and ftfy are imported where they are used: a command that only prints help, or training
from prompts that are clean already, should not pay for them or need them.

Suffixes: B batch, S text tokens, E d_model.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbodiffusion.errors import CheckpointError

WORD_END = "||"  # no piece reaches across it, in the text that a vocabulary is trained on
BETWEEN_HAN = r"(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])"
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # umT5's; it has no token for the beginning of a text


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a umT5 encoder; the defaults are umT5-XXL, the one that Wan uses."""

    d_model: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    d_kv: int = 64
    d_ff: int = 10240
    vocab_size: int = 256384
    text_len: int = 512


def clean_prompt(text: str) -> str:
    """The text with broken Unicode mended (ftfy), HTML entities resolved twice, each run of white space one blank."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class Tokenizer:
    """A SentencePiece vocabulary with umT5's special ids.

    Raises CheckpointError when `path` is not a SentencePiece model or numbers its special tokens differently.
    """

    def __init__(self, path: str | Path, text_len: int = 512):
        from sentencepiece import SentencePieceProcessor

        self.path, self.text_len = Path(path), text_len
        try:
            # The bytes, not the path: SentencePiece prints a complaint of its own about a path it cannot open.
            self._pieces = SentencePieceProcessor(model_proto=self.path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} cannot be read as a SentencePiece vocabulary (spiece.model): {error}"
            ) from None
        special = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if special != (PAD_ID, EOS_ID, UNK_ID):
            raise CheckpointError(
                f"{path} numbers (pad, eos, unk) as {special}; umT5's spiece.model has {(PAD_ID, EOS_ID, UNK_ID)}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special ones included; an encoder's `vocab_size` may be larger, never smaller."""
        return self._pieces.vocab_size()

    def __call__(self, prompts: Sequence[str], *, clean: bool = True) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 [B, text_len] each; 1 in the mask marks a token. `</s>` ends every prompt, cut or not.

        `clean=False` leaves out `clean_prompt`, for captions that a program wrote.
        """
        ids_BS = torch.full((len(prompts), self.text_len), PAD_ID, dtype=torch.int64)
        mask_BS = torch.zeros_like(ids_BS)
        for row, prompt in enumerate(prompts):
            pieces = self._pieces.encode(clean_prompt(prompt) if clean else prompt)
            ids = [*pieces[: self.text_len - 1], EOS_ID]
            ids_BS[row, : len(ids)] = torch.tensor(ids)
            mask_BS[row, : len(ids)] = 1
        return ids_BS, mask_BS


class TextEncoder(nn.Module):
    """umT5's encoder stack. The state dict has transformers' names, the token table once, as `shared.weight`.

    Without a checkpoint the weights are transformers' random initialisation. `device="meta"` allocates nothing.
    """

    def __init__(
        self, config: TextConfig, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ):
        super().__init__()
        from transformers import UMT5Config, UMT5EncoderModel

        self.config = config
        peer_config = UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=128,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",  # transformers reads this as the tanh form
        )
        with torch.device(device or "cpu"):
            model: Any = UMT5EncoderModel(peer_config)
        model.to(dtype)
        self.shared = model.shared
        self.encoder = model.encoder
        self.encoder.embed_tokens = None  # tied to `shared`: kept once, so that a checkpoint fills it once

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """States [B, S, E] of token ids [B, S], in the weights' dtype and differentiable in them; 0 where mask is 0."""
        states_BSE = self.encoder(inputs_embeds=self.shared(ids_BS), attention_mask=mask_BS).last_hidden_state
        return states_BSE.masked_fill(mask_BS[..., None] == 0, 0)


def train_tokenizer(captions: Iterable[str], path: str | Path, vocab_size: int = 4096) -> None:
    """Train a SentencePiece vocabulary by byte-pair merges (arXiv 1508.07909) on captions and write it to `path`.

    A Chinese character is a piece of its own: whole phrases, which a small corpus repeats, would otherwise become
    pieces, and a new combination of known words would read as something never seen. The special ids are umT5's; a
    character not seen in training falls back to its UTF-8 bytes. The same captions give the same pieces: one thread, no
    sampling. `vocab_size` is an upper limit; a small corpus gives fewer pieces.
    """
    from sentencepiece import SentencePieceTrainer

    with Path(path).open("wb") as file:
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
