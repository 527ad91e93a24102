"""Layers in CPU memory: on the device each has its own weights, and its buffer to itself."""

import pytest
import torch

from turbodiffusion.models.offload import LayerOffload


@pytest.mark.gpu
def test_a_buffer_is_not_filled_while_its_layer_computes(caplog):
    """Layers that wait before they read their weights: a copy of the next but one must wait for them."""

    class Slow(torch.nn.Linear):
        def forward(self, x):
            torch.cuda._sleep(20_000_000)  # cycles, about 10 ms; a copy takes one
            return super().forward(x)

    layers = [Slow(2048, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(6)]
    x = torch.randn(4, 2048, device="cuda", dtype=torch.bfloat16)
    expected = [torch.nn.functional.linear(x, layer.weight, layer.bias) for layer in layers]
    offload = LayerOffload(layers, torch.device("cuda"))
    assert (
        not caplog.text
    )  # it says so where the memory could not be pinned, and then copies do not run beside the computing
    with torch.inference_mode():
        for _ in range(2):
            found = [layer(x) for layer in offload.on_device()]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_layers_of_two_forms_raise():
    with pytest.raises(ValueError, match="one form"):
        LayerOffload([torch.nn.Linear(4, 4), torch.nn.Linear(4, 5)], torch.device("cpu"))
    with pytest.raises(ValueError, match="parameters alone"):
        LayerOffload([torch.nn.BatchNorm1d(4)], torch.device("cpu"))


def test_a_layer_has_the_buffer_to_itself_until_the_next():
    layers = [torch.nn.Linear(3, 3) for _ in range(5)]
    expected = [layer.weight.detach().clone() for layer in layers]
    offload = LayerOffload(layers, torch.device("cpu"))
    for _ in range(2):
        assert all(
            torch.equal(layer.weight, weight) for layer, weight in zip(offload.on_device(), expected, strict=True)
        )
