"""A family may own added embedding rows."""

from torch import nn

from vidtune.models.base import VideoLLM


def test_an_assigned_new_tokens_module_is_the_one_that_is_found():
    network = VideoLLM()
    network.new_tokens = nn.Linear(1, 1)
    assert network.new_tokens is dict(network.named_modules())["new_tokens"]
