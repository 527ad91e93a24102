"""The tokenizer and encoder against transformers' own on the same vocabulary and weights."""

from dataclasses import replace

import pytest
import torch

from turbodiffusion.config import TextConfig
from turbodiffusion.errors import CheckpointError
from turbodiffusion.models import text
from turbodiffusion.models.text import TextEncoder, Tokenizer, clean_prompt, train_tokenizer

CAPTIONS = [
    f"a {size} {color} {thing} {does} over a {place}"
    for size in ("small", "large")
    for color in ("red", "green", "blue", "yellow")
    for thing in ("fox", "ball", "cat", "kite")
    for does in ("jumps", "rolls", "flies")
    for place in ("meadow", "lake", "city at night")
] + ["一只红色的狐狸在草地上奔跑", "一只蓝色的猫在湖上飞"]
TINY = TextConfig(d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, vocab_size=512, text_len=12)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    train_tokenizer(CAPTIONS, path, vocab_size=400)
    return path


def test_clean_prompt_mends_text():
    assert clean_prompt("  a fox\n\tjumps  ") == "a fox jumps"
    assert clean_prompt("Tom &amp;amp; Jerry") == "Tom & Jerry"
    assert clean_prompt("schÃ¶n") == "schön"  # UTF-8 read as Latin-1: ftfy's work


def test_training_a_vocabulary_is_deterministic(spiece, tmp_path):
    train_tokenizer(iter(CAPTIONS), tmp_path / "again.model", vocab_size=400)
    assert (tmp_path / "again.model").read_bytes() == spiece.read_bytes()


def test_vocabulary_has_umt5_special_ids_and_byte_fallback(spiece):
    tokenizer = Tokenizer(spiece, text_len=16)
    assert tokenizer.vocab_size <= 400
    ids, mask = tokenizer(["a fox", "§"])
    assert ids.shape == mask.shape == (2, 16)
    assert ids.dtype == torch.int64
    for row in range(2):
        length = int(mask[row].sum())
        assert ids[row, length - 1] == 1
        assert (ids[row, length:] == 0).all()
        assert not (ids[row] == 2).any()  # no unknown: § is made of bytes


def test_a_chinese_character_is_a_piece_of_its_own(spiece):
    """The captions hold 一只红色的狐狸 whole; a piece of several characters would know no other colour."""
    _, mask = Tokenizer(spiece, text_len=24)(["一只红色的狐狸"])
    assert mask.sum() == 7 + 1  # the first with the blank that begins a text, and </s>


def test_long_prompt_is_cut_and_still_ends(spiece):
    ids, mask = Tokenizer(spiece, text_len=5)([CAPTIONS[0] * 3])
    assert mask.sum() == 5
    assert ids[0, -1] == 1


@pytest.mark.parametrize("text_len", [6, 24])
def test_tokenizer_matches_transformers(tmp_path, text_len):
    """On a unigram vocabulary, as umT5's is (transformers reads every spiece.model as one)."""
    from sentencepiece import SentencePieceTrainer
    from transformers import T5Tokenizer

    spiece = tmp_path / "spiece.model"
    with spiece.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS),
            model_writer=file,
            vocab_size=330,
            hard_vocab_limit=False,
            character_coverage=1.0,  # transformers' T5 has no bytes to fall back on
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    peer = T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    prompts = [CAPTIONS[0], "  the  red kite\nflies ", "", CAPTIONS[-1]]
    expected = peer(
        [clean_prompt(p) for p in prompts],
        padding="max_length",
        max_length=text_len,
        truncation=True,
        return_tensors="pt",
    )
    ids, mask = Tokenizer(spiece, text_len)(prompts)
    assert torch.equal(ids, expected.input_ids)
    assert torch.equal(mask, expected.attention_mask)


def test_uncleaned_prompt_is_left_alone(spiece):
    tokenizer = Tokenizer(spiece, 24)
    assert torch.equal(tokenizer(["a red fox"], clean=False)[0], tokenizer(["a red fox"])[0])
    assert not torch.equal(tokenizer(["a &lt; b"], clean=False)[0], tokenizer(["a &lt; b"])[0])


def test_foreign_vocabulary_raises(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.model"):
        Tokenizer(tmp_path / "missing.model", 8)
    (tmp_path / "foreign.model").write_bytes(b"not a vocabulary")
    with pytest.raises(CheckpointError, match="SentencePiece"):
        Tokenizer(tmp_path / "foreign.model", 8)


def test_vocabulary_with_other_special_ids_raises(tmp_path):
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_prefix=str(tmp_path / "llama"),
        vocab_size=64,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(CheckpointError, match="pad, eos, unk"):
        Tokenizer(tmp_path / "llama.model", 8)


def test_encoder_matches_transformers():
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    encoder = TextEncoder(TINY)
    peer = UMT5EncoderModel(
        UMT5Config(vocab_size=512, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, dropout_rate=0.0)
    ).eval()
    missing, unexpected = peer.load_state_dict(encoder.state_dict(), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"}
    assert unexpected == []
    peer.encoder.embed_tokens = peer.shared

    ids = torch.randint(3, 512, (3, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [5], [1]])).long()
    expected = peer(input_ids=ids, attention_mask=mask).last_hidden_state
    prompt_embeds = encoder(ids, mask)
    # The same operations; 1e-5 leaves room for another attention kernel.
    torch.testing.assert_close(prompt_embeds[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5)
    assert (prompt_embeds[mask == 0] == 0).all()


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16, 29, 40])
def test_a_prompt_is_computed_at_its_own_length(monkeypatch, tokens):
    """Padding is cut to the first length that holds the prompt; the prompt_embeds are those of the full length."""
    torch.manual_seed(0)
    encoder = TextEncoder(TINY)
    ids = torch.randint(3, 512, (2, 40))
    mask = (torch.arange(40) < torch.tensor([[tokens], [max(1, tokens - 5)]])).long()
    whole = encoder._encode(ids, mask)
    monkeypatch.setattr(text, "LENGTHS", (8, 16, 32))
    computed, encode = [], encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda ids, mask: computed.append(ids.shape[1]) or encode(ids, mask))
    prompt_embeds = encoder(ids, mask)
    assert computed == [next((length for length in (8, 16, 32) if tokens <= length), 40)]
    assert prompt_embeds.shape == whole.shape and (prompt_embeds[mask == 0] == 0).all()
    # float32 sums of another length in another order
    torch.testing.assert_close(prompt_embeds, whole, atol=1e-5, rtol=1e-5)


def test_a_length_no_longer_than_the_shortest_is_left_alone(monkeypatch):
    encoder = TextEncoder(TINY)
    monkeypatch.setattr(encoder, "_encode", lambda ids, mask: torch.ones(*ids.shape, 32))
    ids = torch.zeros(1, 64, dtype=torch.int64)
    assert encoder(ids, torch.zeros_like(ids)).sum() == 64 * 32


def test_tokens_behind_a_hole_in_the_mask_count(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(text, "LENGTHS", (4, 8))
    encoder = TextEncoder(TINY)
    ids = torch.randint(3, 512, (1, 12))
    mask = torch.tensor([[1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(encoder(ids, mask), encoder._encode(ids, mask), atol=1e-5, rtol=1e-5)


def test_in_bfloat16_nothing_is_lost_against_transformers():
    """No further from float32 than transformers' own bfloat16, which rounds the scores before the softmax."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    exact = TextEncoder(TINY)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16())
    encoder = TextEncoder(TINY, dtype=torch.bfloat16)
    encoder.load_state_dict(exact.state_dict())
    peer = UMT5EncoderModel(UMT5Config(vocab_size=512, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48))
    peer.load_state_dict(exact.state_dict(), strict=False)
    peer.encoder.embed_tokens = peer.shared
    peer.to(torch.bfloat16).eval()
    ids = torch.randint(3, 512, (8, 12))
    mask = (torch.arange(12) < torch.arange(5, 13)[:, None]).long()
    expected = exact(ids, mask)[mask == 1]
    off, allowed = (
        ((prompt_embeds[mask == 1].float() - expected).norm() / expected.norm()).item()
        for prompt_embeds in (encoder(ids, mask), peer(input_ids=ids, attention_mask=mask).last_hidden_state)
    )
    assert off <= 1.1 * allowed < 0.05


def test_training_after_inference_has_its_gradients():
    """What inference keeps for the next call must not be a tensor that autograd refuses."""
    torch.manual_seed(0)
    encoder = TextEncoder(TINY)
    ids = torch.randint(3, 512, (1, 12))
    with torch.inference_mode():
        encoder(ids, torch.ones_like(ids))
    encoder(ids, torch.ones_like(ids)).sum().backward()
    assert encoder.shared.weight.grad is not None


def test_the_encoder_compiles_as_one_graph():
    """Training compiles it with its loss; "aot_eager" traces forward and backward and needs no C++ compiler."""
    torch.manual_seed(0)
    encoder = TextEncoder(TINY)
    ids = torch.randint(3, 512, (2, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [5]])).long()
    expected = encoder(ids, mask)
    prompt_embeds = torch.compile(encoder, backend="aot_eager", fullgraph=True)(ids, mask)
    torch.testing.assert_close(prompt_embeds, expected)
    prompt_embeds.sum().backward()


def test_a_moved_encoder_keeps_nothing_of_its_old_place():
    encoder = TextEncoder(TINY)
    ids = torch.randint(3, 512, (1, 12))
    encoder(ids, torch.ones_like(ids))
    assert encoder._bucket_tables
    encoder.to(torch.bfloat16)
    assert not encoder._bucket_tables and not encoder._graphs
    assert encoder(ids, torch.ones_like(ids)).dtype == torch.bfloat16


@pytest.mark.gpu
def test_a_graph_gives_what_the_launches_give():
    torch.manual_seed(0)
    encoder = TextEncoder(TINY, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        for length in (12, 9, 12, 5):
            ids = torch.randint(3, 512, (1, 12), device="cuda")
            mask = (torch.arange(12, device="cuda") < length).long()[None]
            torch.testing.assert_close(encoder(ids, mask), encoder._encode(ids, mask), atol=0, rtol=0)
        assert len(encoder._graphs) == 1


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offloaded_encoder_gives_the_same_bits(device, layers, dtype):
    torch.manual_seed(0)
    resident = TextEncoder(replace(TINY, num_layers=layers), device=device, dtype=dtype)
    offloaded = TextEncoder(resident.config, dtype=dtype)
    offloaded.load_state_dict(resident.state_dict())
    offloaded.offload(device)
    assert {t.device.type for name, t in offloaded.state_dict().items() if "final" not in name} == {"cpu"}
    with torch.inference_mode():
        for length in (12, 5, 12):
            ids = torch.randint(3, 512, (2, 12), device=device)
            mask = (torch.arange(12, device=device) < length).long().expand(2, -1)
            assert torch.equal(offloaded(ids, mask), resident(ids, mask))
    for name, tensor in resident.state_dict().items():  # still whole, by its names
        assert torch.equal(offloaded.state_dict()[name].cpu(), tensor.cpu()), name


@pytest.mark.gpu
def test_an_offloaded_encoder_holds_two_layers_on_the_gpu():
    """Layers large enough that their copies and products overlap: a buffer that is filled too early would show."""
    torch.manual_seed(0)
    config = TextConfig(d_model=1024, num_layers=12, num_heads=16, d_kv=64, d_ff=4096, vocab_size=8192, text_len=512)
    encoder = TextEncoder(config, device="cuda", dtype=torch.bfloat16)
    ids = torch.randint(3, 8192, (1, 512), device="cuda")
    with torch.inference_mode():
        expected = encoder(ids, torch.ones_like(ids))
        layer = sum(p.nbytes for p in encoder.encoder.block[0].parameters())
        encoder.offload("cuda")
        torch.cuda.empty_cache()
        for _ in range(4):
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            prompt_embeds = encoder(ids, torch.ones_like(ids))
            activations = 60_000_000  # the bias of 16 heads, the hidden prompt_embeds
            assert torch.cuda.max_memory_allocated() - before < 2.1 * layer + activations
            assert torch.equal(prompt_embeds, expected)


def test_what_lies_past_a_prompt_does_not_matter():
    torch.manual_seed(0)
    encoder = TextEncoder(TINY)
    ids = torch.randint(3, 512, (1, 12))
    mask = (torch.arange(12) < 7).long()[None]
    other = torch.where(mask == 1, ids, 5)
    assert torch.equal(encoder(ids, mask), encoder(other, mask))


def test_encoder_is_differentiable():
    torch.manual_seed(0)
    encoder = TextEncoder(TINY)
    mask = (torch.arange(12) < torch.tensor([[12], [5]])).long()
    encoder(torch.randint(3, 512, (2, 12)), mask).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_real_size_on_meta_has_the_published_parameters():
    encoder = TextEncoder(TextConfig(), device="meta", dtype=torch.bfloat16)
    shapes = {name: tuple(t.shape) for name, t in encoder.state_dict().items()}
    assert shapes["shared.weight"] == (256384, 4096)
    assert shapes["encoder.block.23.layer.0.SelfAttention.relative_attention_bias.weight"] == (32, 64)
    assert "encoder.embed_tokens.weight" not in shapes
    assert all(t.is_meta and t.dtype == torch.bfloat16 for t in encoder.state_dict().values())
    layer = 4 * 4096 * 4096 + 3 * 4096 * 10240 + 2 * 4096 + 32 * 64
    assert sum(p.numel() for p in encoder.parameters()) == 256384 * 4096 + 24 * layer + 4096
