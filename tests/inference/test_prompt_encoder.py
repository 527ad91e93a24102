"""Prompts and the embeddings that are kept of them."""

import logging

import turbodiffusion as td
from turbodiffusion.request import Request

PROMPT = "a red fox runs"


def load(folder, **options):
    return td.Pipeline.load(str(folder), **options)


def test_prompt_embeds_are_cached_but_not_for_ever(rcm_folder):
    prompts = load(rcm_folder).model.prompt_encoder
    for prompt in ["fox 0", *(f"fox {number}" for number in range(20)), "fox 4"]:
        assert prompts.encode(prompt) is prompts._cache[prompt]
    assert list(prompts._cache) == [*(f"fox {number}" for number in range(5, 20)), "fox 4"]


def test_an_offloaded_text_encoder_makes_the_same_video(rcm_folder, caplog):
    with caplog.at_level(logging.INFO, logger="turbodiffusion"):
        pipe = load(rcm_folder, offload_text="on")
    assert (
        "the text encoder is in CPU memory" in str(pipe.model.memory_plan)
        and str(pipe.model.memory_plan) in caplog.text
    )
    resident = load(rcm_folder)
    assert "every part stays there" in str(resident.model.memory_plan)
    for prompt in (PROMPT, "a blue cat flies", PROMPT):
        assert pipe.generate(Request(prompt, seed=1)).mp4 == resident.generate(Request(prompt, seed=1)).mp4
