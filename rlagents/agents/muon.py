"""Muon for convolutions: a step of the same length in all directions (Jordan et al. 2024).

    momentum += (1 - beta) (gradient - momentum)
    weights -= rate * 0.2 sqrt(max(rows, columns)) * orthogonal((1 - beta) gradient + beta momentum)

where orthogonal(U S V^T) = U V^T, roughly. The gradients of a convolution share a few strong directions,
along which Adam goes far while it hardly moves along the others; here each singular value of a step is near
1. The factor makes an entry of a step as large as one of Adam's (Liu et al. 2025), so that a learning rate
means the same for both. Departure: hidden dense layers stay with Adam. Theirs are large matrices, and one
step would take nearly as long as all else that a small network does. PyTorch's own Muon, of 2.9 and later,
takes nothing but matrices, and reads its rate on the host, which a recorded CUDA graph cannot.

    https://kellerjordan.github.io/posts/muon/ and https://arxiv.org/abs/2502.16982
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_BETA = 0.95
_STEPS = 5
_QUINTIC = 3.4445, -4.7750, 2.0315  # the authors': steep at zero, and nothing within (0, 1] leaves (0, 1.21)


class Muon(Optimizer):
    """Moves the weights of convolutions, seen as matrices of one row for each channel that comes out.

    Args:
        weights: [channels, *] float32, on one device.
        lr: learning rate; one in a tensor may be changed where it lies.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: Tensor | float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["momentum"] = torch.zeros_like(weight, requires_grad=False)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Moves the weights along their gradients; nothing waits for the device."""
        (group,) = self.param_groups
        rate: Tensor | float = group["lr"]
        weights: list[nn.Parameter] = group["params"]
        for weight in weights:
            momentum: Tensor = self.state[weight]["momentum"]
            gradient = weight.grad
            if gradient is None:
                continue
            momentum.lerp_(gradient, 1 - _BETA)
            step = orthogonal(gradient.lerp(momentum, _BETA).flatten(1))
            if group["weight_decay"]:
                weight.mul_(1 - rate * group["weight_decay"])
            weight.sub_((step * (rate * 0.2 * max(step.shape) ** 0.5)).view(weight.shape))


def orthogonal(matrix: Tensor) -> Tensor:
    """Returns [R, C] with the singular vectors of a matrix [R, C] and singular values near 1.

    By five steps X <- a X + b (X X^T) X + c (X X^T)^2 X of Newton and Schulz, multiplications alone. From
    0.003 of the root of the sum of their squares upwards, singular values come to lie between 0.68 and 1.21.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x * x.square().sum().clamp(min=1e-14).rsqrt()
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.T  # [R, R], or [C, C] if that is smaller
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
