"""The whole network: bodies, joined, dense layers and a head."""

from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlagents.config import Network as Config
from rlagents.networks import bodies
from rlagents.types import Obs
from rlagents_envs.vector import Layout


class Network(nn.Module):
    """From observations [B, *O] to Z numbers for each of A actions, [B, A, Z] float32.

    Each input of a dictionary has a body of its own; their features are joined. The body can compute in
    bfloat16; the head stays in float32, where small differences between values count.

    With `dueling`, Q = V + A - mean A (Wang et al. 2016, equation 9). Departure: the two streams share the
    last dense layer instead of having one each, which halves the largest matrix.
    """

    def __init__(self, config: Config, layout: Layout, actions: int, width: int) -> None:
        super().__init__()
        leaves = layout if isinstance(layout, dict) else {"obs": layout}
        hidden = config.hidden or ((512,) if bodies.has_pixels(layout) else (128, 128))
        self._inputs = {
            name: bodies.make(
                config.body, leaf, layer_norm=config.layer_norm, subtract_mean=config.subtract_mean
            )
            for name, leaf in leaves.items()
        }
        self.bodies = nn.ModuleList(self._inputs.values())
        sizes = [sum(body.features for body in self._inputs.values()), *hidden]
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in hidden if config.layer_norm)
        self._out = (actions, width)
        self.head = nn.Linear(sizes[-1], actions * width)
        self.state_value = nn.Linear(sizes[-1], width) if config.dueling else None
        self._dtype = torch.float32

    def narrow_(self) -> Self:
        """Turns the body and the dense layers to bfloat16, in place."""
        self._dtype = torch.bfloat16
        for part in (self.bodies, self.dense, self.norms):
            part.to(self._dtype)
        return self

    def centre_(self, obs: Obs) -> None:
        """Takes the mean of observations [B, *O] for what bodies subtract from images, if they do."""
        inputs = {"obs": obs} if isinstance(obs, Tensor) else obs
        for name, body in self._inputs.items():
            if isinstance(body, bodies.Convolutions):
                body.centre_(inputs[name])

    def prepare(self, obs: Obs) -> list[Tensor]:
        """Returns observations [B, *O] in the dtype and layout that `compute` wants, for several uses."""
        inputs = {"obs": obs} if isinstance(obs, Tensor) else obs
        return [body.prepare(inputs[name], self._dtype) for name, body in self._inputs.items()]

    def forward(self, obs: Obs) -> Tensor:
        """Returns [B, A, Z] float32."""
        return self.compute(self.prepare(obs))

    def compute(self, inputs: list[Tensor]) -> Tensor:
        """Returns [B, A, Z] float32 for what `prepare` returned."""
        parts = [body(x) for body, x in zip(self._inputs.values(), inputs, strict=True)]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        for index, layer in enumerate(self.dense):
            x = layer(x)
            if self.norms:
                x = self.norms[index](x)
            x = F.relu(x, inplace=not self.norms)
        x = x.float()
        values = self.head(x).unflatten(1, self._out)  # [B, A, Z]
        if self.state_value is None:
            return values
        return values - values.mean(1, keepdim=True) + self.state_value(x)[:, None]
