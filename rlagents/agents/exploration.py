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

    Each environment has a coin of its own. With neither exploration nor ties nothing is drawn, so evaluation
    is repeatable.

    Args:
        values: [N, A].
        epsilon: probability of a uniform action.
        generator: where coins and actions come from, on the device of `values`.
        mask: [N, A] legal actions; None: all.
        ties: choose uniformly among equally good actions, as a table's many equal entries need, rather than
            the first.
    """
    values = legal_values(values, mask)
    if epsilon <= 0 and not ties:
        return values.argmax(1)
    draw = torch.rand(2, *values.shape, generator=generator, device=values.device)  # [2, N, A]
    explores = draw[1, :, :1] < epsilon  # [N, 1]
    if ties:
        candidates = (values == values.amax(1, keepdim=True)) | (explores & ~values.isneginf())
        return torch.where(candidates, draw[0], -1).argmax(1)
    uniform = torch.where(values.isneginf(), -1, draw[0]).argmax(1)
    return torch.where(explores[:, 0], uniform, values.argmax(1))


def probabilities(values: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
    """Returns the probabilities [N, A] with which `epsilon_greedy` chooses, ties broken at random."""
    values = legal_values(values, mask)
    best = (values == values.amax(1, keepdim=True)).to(values.dtype)
    legal = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    return (1 - epsilon) * best / best.sum(1, keepdim=True) + epsilon * legal / legal.sum(1, keepdim=True)
