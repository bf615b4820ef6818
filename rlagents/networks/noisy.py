"""Dense layers whose weights are noisy, by amounts that are learned (Fortunato et al. 2018)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Noise(NamedTuple):
    """Where the noise of one forward pass comes from."""

    generator: torch.Generator  # on the device of the network
    rows: int = 1  # draws: one for each observation, or 1 for all of them


class NoisyLinear(nn.Linear):
    """A dense layer with factorised noise (equations 10 and 11 of the paper).

    y = w x + b + f(e_out) * (s_w (x * f(e_in)) + s_b), where f(e) = sign(e) * sqrt|e| of normal e. That is
    the paper's noisy weight w + s_w * (f(e_out) outer f(e_in)) without ever building it, so that each row of
    a batch can have a noise of its own for the price of one more product.

    Args:
        inputs: features that come in.
        outputs: features that come out.
        noise: sigma_0; s_w and s_b start at sigma_0 / sqrt(inputs). w and b start as in any dense layer,
            which is what the paper asks for.
    """

    def __init__(self, inputs: int, outputs: int, noise: float) -> None:
        super().__init__(inputs, outputs)
        size = noise * inputs**-0.5
        self.noise_weight = nn.Parameter(torch.full((outputs, inputs), size))
        self.noise_bias = nn.Parameter(torch.full((outputs,), size))

    def forward(self, input: Tensor, noise: Noise | None = None) -> Tensor:
        """Returns [B, *, outputs] for [B, *, inputs]; without noise, what is right on average."""
        mean = F.linear(input, self.weight, self.bias)
        if noise is None:
            return mean
        before, behind = (self._draw(noise, size, input) for size in (self.in_features, self.out_features))
        return torch.addcmul(mean, F.linear(input * before, self.noise_weight, self.noise_bias), behind)

    @staticmethod
    def _draw(noise: Noise, size: int, like: Tensor) -> Tensor:
        """Returns f(e) that fits rows of `size` features, of the precision and device of `like`."""
        shape = (noise.rows, *(1 for _ in like.shape[1:-1]), size)
        draw = torch.randn(shape, generator=noise.generator, device=like.device)
        return (draw.sign() * draw.abs().sqrt()).to(like.dtype)
