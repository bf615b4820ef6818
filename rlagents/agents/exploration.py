"""How actions are chosen from values."""

import torch
from torch import Tensor


def legal_values(values: Tensor, mask: Tensor | None) -> Tensor:
    """Returns values [*, A] with -inf where an action is illegal."""
    return values if mask is None else values.masked_fill(~mask, -torch.inf)


def epsilon_greedy(
    values: Tensor,
    epsilon: float,
    generator: torch.Generator,
    mask: Tensor | None = None,
    *,
    ties: bool = False,
) -> Tensor:
    """Returns actions [N]: uniform among the legal ones with probability epsilon, else the best legal one.

    Each environment has a coin of its own. Without exploration nothing is drawn, so evaluation is repeatable.

    Args:
        values: [N, A].
        epsilon: probability of a uniform action.
        generator: where coins and actions come from, on the device of `values`.
        mask: [N, A] legal actions; None: all.
        ties: choose uniformly among equally good actions while exploring, as a table's many equal entries
            need, rather than the first.
    """
    values = legal_values(values, mask)
    if epsilon <= 0:
        return values.argmax(1)
    draw = torch.rand(2 + ties, *values.shape, generator=generator, device=values.device)  # [2 or 3, N, A]
    if ties:
        best = torch.where(values == values.amax(1, keepdim=True), draw[2], -1).argmax(1)
    else:
        best = values.argmax(1)
    uniform = torch.where(values.isneginf(), -1, draw[0]).argmax(1)
    return torch.where(draw[1, :, 0] < epsilon, uniform, best)
