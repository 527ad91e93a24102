"""Load options as JSON, and what they refuse."""

import pytest

import turbodiffusion as td
from turbodiffusion.errors import RequestError
from turbodiffusion.inference.load_options import LoadOptions


def test_options_survive_json():
    options = LoadOptions("wan2.1-t2v-14b", device="cuda:1", sla_topk=0.15, quant_linear="on", max_memory=24.0)
    assert LoadOptions.from_json(options.to_json()) == options
    assert hash(options) == hash(LoadOptions.from_json(options.to_json()))


def test_an_unknown_option_is_named():
    with pytest.raises(RequestError, match="load option colour: there are model, device"):
        LoadOptions.from_json({"model": "demo", "colour": "red"})


def test_a_pipeline_takes_options(rcm_folder):
    options = LoadOptions(str(rcm_folder), device="cpu", attention_type="sla")
    pipe = td.Pipeline.load(options, sla_topk=0.5)
    assert pipe.model.options == LoadOptions(str(rcm_folder), device="cpu", attention_type="sla", sla_topk=0.5)
    assert (pipe.model.compute.attention_type, pipe.model.compute.sla_topk) == ("sla", 0.5)
