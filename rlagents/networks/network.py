"""The whole network: bodies, joined, dense layers and a head."""

import math
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlagents.config import Network as Config
from rlagents.networks import bodies
from rlagents.networks.noisy import Noise, NoisyLinear
from rlagents.types import Obs, named
from rlagents_envs.vector import Layout


class Cosines(nn.Module):
    """Features of a fraction t: ReLU(sum over i < cosines of w_i cos(pi i t) + b) (IQN, equation 4)."""

    def __init__(self, cosines: int, features: int) -> None:
        super().__init__()
        self.cosines = cosines
        self.dense = nn.Linear(cosines, features)

    def forward(self, fractions: Tensor) -> Tensor:
        """Returns [*, features] for fractions [*] float32, in the precision of the weights."""
        turns = torch.arange(self.cosines, device=fractions.device) * math.pi
        waves = (fractions[..., None] * turns).cos()
        return F.relu(self.dense(waves.to(self.dense.weight.dtype)))


class Network(nn.Module):
    """From observations [B, *O] to Z numbers for each of A actions, [B, A, Z] float32.

    Each input of a dictionary has a body of its own; their features are joined. The body can compute in
    bfloat16; the head stays in float32, where small differences between values count.

    With `dueling`, Q = V + A - mean A (Wang et al. 2016, equation 9). Departure: the two streams share the
    last dense layer instead of having one each, which halves the largest matrix.

    With `cosines`, the network is asked for the quantiles at fractions [B, K], and Z is K. What it knows of
    the observation is multiplied with features of the fraction (Dabney et al. 2018b, section 3.1) before the
    last dense layer; or after it, where that would be the numbers of the observation themselves.

    With `noisy`, the dense layers and the head have noise in each pass that is given some; the bodies and the
    features of fractions have none.
    """

    def __init__(self, config: Config, layout: Layout, actions: int, width: int, cosines: int = 0) -> None:
        super().__init__()

        def dense(inputs: int, outputs: int) -> nn.Linear:
            return NoisyLinear(inputs, outputs, config.noise) if config.noisy else nn.Linear(inputs, outputs)

        leaves = named(layout)
        pixels = bodies.has_pixels(layout)
        hidden = config.hidden or ((512,) if pixels else (128, 128))
        self._inputs = {
            name: bodies.make(
                config.body,
                leaf,
                vector_hidden=config.vector_hidden,
                layer_norm=config.layer_norm,
                subtract_mean=config.subtract_mean,
            )
            for name, leaf in leaves.items()
        }
        self.bodies = nn.ModuleList(self._inputs.values())
        sizes = [sum(body.features for body in self._inputs.values()), *hidden]
        self.dense = nn.ModuleList(dense(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in hidden if config.layer_norm)
        self._out = (actions, width)
        self.head = dense(sizes[-1], actions * width)
        self.state_value = dense(sizes[-1], width) if config.dueling else None
        self._joint = max(len(hidden) - 1, 0 if pixels else 1)  # dense layers before the fractions come in
        self.cosines = Cosines(cosines, sizes[self._joint]) if cosines else None
        self._dtype = torch.float32

    def narrow_(self) -> Self:
        """Turns the body and the dense layers to bfloat16, in place."""
        self._dtype = torch.bfloat16
        for part in (self.bodies, self.dense, self.norms, self.cosines):
            if part is not None:
                part.to(self._dtype)
        return self

    def convolution_weights(self) -> list[nn.Parameter]:
        """Returns the weights of all convolutions, [channels, *] each."""
        found = {id(part.weight) for part in self.modules() if isinstance(part, nn.Conv2d)}
        return [parameter for parameter in self.parameters() if id(parameter) in found]

    def centre_(self, obs: Obs) -> None:
        """Takes the mean of observations [B, *O] for what bodies subtract from images, if they do."""
        inputs = named(obs)
        for name, body in self._inputs.items():
            if isinstance(body, bodies.Images):
                body.centre_(inputs[name])

    def prepare(self, obs: Obs) -> list[Tensor]:
        """Returns observations [B, *O] in the dtype and layout that `compute` wants, for several uses."""
        inputs = named(obs)
        return [body.prepare(inputs[name], self._dtype) for name, body in self._inputs.items()]

    def forward(self, obs: Obs, fractions: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """Returns [B, A, Z] float32."""
        return self.compute(self.prepare(obs), fractions, noise)

    def compute(
        self, inputs: list[Tensor], fractions: Tensor | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Returns [B, A, Z] float32 for what `prepare` returned.

        Args:
            inputs: from `prepare`.
            fractions: [B, Z], or [1, Z] for all alike; only with `cosines`, and then they must be given.
            noise: of noisy layers; None: none.
        """
        parts = [body(x) for body, x in zip(self._inputs.values(), inputs, strict=True)]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        for index, layer in enumerate(self.dense):
            if index == self._joint:
                x = self._asked(x, fractions)
            x = _through(layer, x, noise)
            if self.norms:
                x = self.norms[index](x)
            x = F.relu(x, inplace=not self.norms)
        if self._joint == len(self.dense):
            x = self._asked(x, fractions)
        x = x.float()
        values = _through(self.head, x, noise).view(*x.shape[:-1], *self._out)  # [B, A, Z], or [B, Z, A, 1]
        if self.state_value is not None:
            advantage = values - values.mean(-2, keepdim=True)
            values = advantage + _through(self.state_value, x, noise)[..., None, :]
        return values if self.cosines is None else values[..., 0].transpose(1, 2)

    def _asked(self, x: Tensor, fractions: Tensor | None) -> Tensor:
        """Returns features [B, Z, F] for features [B, F] and fractions; without fractions, as they are."""
        if self.cosines is None or fractions is None:
            return x
        return x[:, None] * self.cosines(fractions)


def _through(layer: nn.Module, x: Tensor, noise: Noise | None) -> Tensor:
    return layer(x, noise) if isinstance(layer, NoisyLinear) else layer(x)
