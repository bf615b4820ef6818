"""Muon against PyTorch's own, and what the agents hand to it."""

import pytest
import torch
from torch import nn

from learning import build
from rlagents.agents.muon import Muon, orthogonal
from rlagents_envs.vector import Leaf

IMAGE = Leaf("pixels", (4, 84, 84), "uint8", 4, scale=1 / 255)


@pytest.mark.parametrize("shape", [(16, 256), (64, 9), (5, 5)])
def test_orthogonal_keeps_singular_vectors_and_evens_out_values(shape):
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(
        torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False
    )
    values = torch.logspace(0, -2, min(shape), dtype=torch.float64)
    found = u.T @ orthogonal(u * (7.0 * values) @ v) @ v.T  # diagonal, if the vectors are the same
    assert found.diagonal().min() > 0.68
    assert found.diagonal().max() < 1.21
    torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=1e-9, rtol=0)


def test_a_gradient_of_zero_moves_nothing():
    assert not orthogonal(torch.zeros(3, 4)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_it_moves_convolutions_as_the_one_of_pytorch_moves_their_matrices(decay):
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(4, 16, 8).to(memory_format=torch.channels_last)
    weight = convolution.weight
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    before = matrix.detach().clone()
    ours = Muon([weight], 0.02, decay)
    theirs = torch.optim.Muon([matrix], 0.02, decay, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(16, 256, generator=generator) * torch.logspace(0, -2, 16)[:, None]
        weight.grad, matrix.grad = gradient.view(weight.shape), gradient
        ours.step()
        theirs.step()
    way, their_way = weight.detach().flatten(1) - before, matrix.detach() - before
    assert (way - their_way).norm() < 0.02 * their_way.norm()  # theirs multiplies in bfloat16


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["dqn", "pqn"])
def test_convolutions_go_by_it_and_all_else_by_adam_at_rates_that_fall(kind, precision):
    replay = {"replay": {"capacity": 100}} if kind == "dqn" else {}
    table = {"kind": kind, "precision": precision, "learning_rate": 1e-3, "learning_rate_end": 0.0, **replay}
    agent = build(IMAGE, 6, env_steps=100, muon=4.0, **table)
    weights = agent._weights
    assert not {*weights.optimizer.param_groups[0]["params"]} & {*agent.online.convolution_weights()}
    weights.set_rates(50)
    before = {name: p.detach().clone() for name, p in agent.online.named_parameters()}
    for parameter in weights.renewed or weights.parameters:
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
    weights.step()
    for name, parameter in agent.online.named_parameters():
        size = (parameter.detach() - before[name]).square().mean().sqrt()
        if "convolutions" in name and name.endswith("weight"):
            # An orthogonal matrix has entries of 1 / sqrt(longer side): by the factor, 0.2 of the rate.
            assert 0.68 * 0.2 * 4 * 5e-4 < size < 1.21 * 0.2 * 4 * 5e-4
        else:
            torch.testing.assert_close(size, torch.tensor(5e-4), rtol=0.02, atol=0)  # Adam's first step


def test_its_momenta_are_saved_and_restored():
    agent, twin = (build(IMAGE, 6, kind="pqn", muon=2.0) for _ in range(2))
    for one in (agent, twin):
        for parameter in one._weights.renewed or one._weights.parameters:
            parameter.grad = torch.full_like(parameter, 0.1)
    agent._weights.step()
    twin._weights.load_state_dict(agent._weights.state_dict())
    for one in (agent, twin):
        for index, parameter in enumerate(one._weights.renewed or one._weights.parameters):
            generator = torch.Generator().manual_seed(index)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        one._weights.step()
    for mine, theirs in zip(twin.online.parameters(), agent.online.parameters(), strict=True):
        assert torch.equal(mine, theirs)
