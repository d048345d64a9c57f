"""A polyphase convolution gives the result of the strided one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finallyse.training.polyphase import use_polyphase_convolutions


@pytest.mark.parametrize("length", [64, 65, 66, 67, 1])
@pytest.mark.parametrize("kernel,stride,padding", [(41, 2, 20), (41, 4, 20), (5, 3, 2), (4, 4, 2)])
def test_a_polyphase_convolution_is_the_strided_one(length, kernel, stride, padding):
    torch.manual_seed(0)
    plain = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 16, kernel, stride, padding, groups=4))
    polyphase = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 16, kernel, stride, padding, groups=4))
    polyphase.load_state_dict(plain.state_dict())
    use_polyphase_convolutions(polyphase)
    results = []
    for layer in (plain, polyphase):
        wav = torch.linspace(-1, 1, 8 * length).view(1, 8, length).requires_grad_()
        output = layer(wav)
        output.square().sum().backward()
        results.append((output, wav.grad, layer.parametrizations.weight.original1.grad, layer.bias.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
