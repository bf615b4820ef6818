"""Bodies for every kind of input, and heads."""

import pytest
import torch
from pydantic import TypeAdapter

from rlagents.config import Network as Config
from rlagents.networks import Network, Noise
from rlagents.networks.noisy import NoisyLinear
from rlagents_envs.vector import Leaf

BYTES = 1 / 255


def network(layout, *, width=2, cosines=0, **table):
    torch.manual_seed(0)
    return Network(TypeAdapter(Config).validate_python(table), layout, 5, width, cosines)


def noise(rows=1, seed=0):
    return Noise(torch.Generator().manual_seed(seed), rows)


LAYOUTS = {
    "index": (Leaf("index", (), "int64", size=7), torch.arange(3)),
    "vector": (Leaf("vector", (6,), "float32"), torch.randn(3, 6)),
    "ram": (Leaf("vector", (128,), "uint8", scale=BYTES), torch.randint(0, 255, (3, 128), dtype=torch.uint8)),
    "atari": (
        Leaf("pixels", (4, 84, 84), "uint8", 4, scale=BYTES),
        torch.randint(0, 255, (3, 4, 84, 84), dtype=torch.uint8),
    ),
    "odd": (
        Leaf("pixels", (3, 50, 97), "uint8", scale=BYTES),
        torch.randint(0, 255, (3, 3, 50, 97), dtype=torch.uint8),
    ),
    "small": (Leaf("pixels", (4, 10, 10), "uint8"), torch.randint(0, 2, (3, 4, 10, 10), dtype=torch.uint8)),
    "tiny": (Leaf("pixels", (1, 2, 3), "float32"), torch.randn(3, 1, 2, 3)),
}
LAYOUTS["all"] = (
    {name: leaf for name, (leaf, _) in LAYOUTS.items()},
    {name: obs for name, (_, obs) in LAYOUTS.items()},
)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dueling": True, "layer_norm": True, "hidden": [16, 8]},
        {"body": "mlp"},
        {"subtract_mean": True},
        {"body": "impala", "hidden": [16]},
        {"body": "impala", "layer_norm": True, "subtract_mean": True, "hidden": [16]},
        {"noisy": True, "dueling": True, "hidden": [16, 8]},
        {"vector_hidden": [8, 6], "layer_norm": True},
    ],
)
@pytest.mark.parametrize("narrow", [False, True])
def test_every_input_has_a_body_and_every_weight_a_gradient(name, options, narrow):
    layout, obs = LAYOUTS[name]
    net = network(layout, **options)
    if narrow:
        net.narrow_()
    out = net(obs, noise=noise() if options.get("noisy") else None)
    assert out.shape == (3, 5, 2)
    assert out.dtype == torch.float32
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in net.parameters()) >= len(list(net.parameters())) - 2


def test_the_arcade_cnn_has_the_sizes_of_the_paper():
    net = network(LAYOUTS["atari"][0], body="arcade_cnn", hidden=[256])
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    assert shapes == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (10, 256)]


def test_layer_norm_keeps_every_layer_alive():
    layout, obs = LAYOUTS["atari"]
    plain, normalised = network(layout), network(layout, layer_norm=True)
    for net in (plain, normalised):  # as a first learner step that went too far would leave it
        torch.nn.init.constant_(net.bodies[0].convolutions[0].bias, -100.0)
    assert plain(obs).std(0).max() == 0
    assert normalised(obs).std(0).min() > 0


@pytest.mark.parametrize("narrow", [False, True])
def test_the_mean_image_is_subtracted_from_bytes_exactly(narrow):
    layout, obs = LAYOUTS["atari"]
    plain, centred = network(layout, hidden=[16]), network(layout, hidden=[16], subtract_mean=True)
    if narrow:
        centred.narrow_()
    assert torch.equal(pixels(centred.prepare(obs)), obs.float())
    centred.centre_(obs)
    newest = obs[:, -1:].float().mean(0).round()
    assert torch.equal(pixels(centred.prepare(obs)), obs.float() - newest)  # of each frame of the stack
    plain.centre_(obs)
    assert torch.equal(pixels(plain.prepare(obs)), obs.float())


def pixels(prepared):
    """Images [B, 4, 84, 84] float32 from the blocks [B, 4 * 4, 4, 21, 21] that lie together for a network."""
    (blocks,) = prepared
    return blocks.float().unflatten(1, (4, 4)).permute(0, 3, 4, 1, 5, 2).reshape(-1, 4, 84, 84)


@pytest.mark.parametrize("body", ["nature_cnn", "arcade_cnn"])
def test_a_convolution_over_blocks_is_the_one_over_pixels(body):
    """In float64: where a rounding decides whether a unit is zero, gradients differ by what it passes on."""
    layout, obs = LAYOUTS["atari"]
    net = network(layout, body=body, hidden=[16], subtract_mean=True).double()
    net.centre_(obs)
    units = net.bodies[0](net.bodies[0].prepare(obs, torch.float64))
    units.square().sum().backward()
    seen = [parameter.grad.clone() for parameter in net.bodies[0].parameters()]
    net.zero_grad()
    x = (obs.double() - net.bodies[0].mean) / 255
    for layer in net.bodies[0].convolutions:
        x = torch.relu(layer(x))
    x.square().sum().backward()
    torch.testing.assert_close(units, x.permute(0, 2, 3, 1).flatten(1), atol=1e-8, rtol=1e-6)
    for parameter, gradient in zip(net.bodies[0].parameters(), seen, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-8, rtol=1e-6)


def test_images_that_are_no_whole_blocks_are_seen_pixel_by_pixel():
    layout = Leaf("pixels", (1, 42, 50), "uint8", scale=1 / 255)
    obs = torch.randint(0, 255, (3, 1, 42, 50), dtype=torch.uint8)
    net = network(layout, body="nature_cnn", hidden=[16], subtract_mean=True)
    net.centre_(obs)
    (prepared,) = net.prepare(obs)
    assert torch.equal(prepared, obs.float() - obs.float().mean(0).round())


def test_a_still_background_does_not_reach_the_units_of_a_centred_network():
    layout = LAYOUTS["atari"][0]
    net = network(layout, hidden=[16], subtract_mean=True)
    background = torch.randint(0, 255, (1, 1, 84, 84), dtype=torch.uint8).expand(1, 4, 84, 84)
    net.centre_(background.expand(5, -1, -1, -1))
    units = net.bodies[0](net.prepare(background)[0])
    torch.nn.init.zeros_(net.bodies[0].convolutions[0].weight)
    torch.testing.assert_close(units, net.bodies[0](net.prepare(background)[0]))


def test_the_nature_cnn_has_the_sizes_of_the_paper():
    net = network(LAYOUTS["atari"][0])
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (10, 512)]
    assert [layer.stride for layer in net.bodies[0].convolutions] == [(4, 4), (2, 2), (1, 1)]


def test_bytes_are_scaled_to_one_and_the_image_is_read_as_written_out():
    layout, obs = LAYOUTS["atari"]
    net = network(layout, hidden=[16])
    x = obs.float() / 255
    for layer in net.bodies[0].convolutions:
        x = torch.relu(layer(x))
    x = torch.relu(net.dense[0](x.permute(0, 2, 3, 1).flatten(1)))
    torch.testing.assert_close(net(obs), net.head(x).unflatten(1, (5, 2)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_vector_goes_through_layers_of_its_own_before_it_is_joined(layer_norm):
    layout, obs = ({name: LAYOUTS[name][i] for name in ("index", "vector")} for i in (0, 1))
    net = network(layout, hidden=[16], vector_hidden=[8, 4], layer_norm=layer_norm)
    index, x = torch.nn.functional.one_hot(obs["index"], 7).float(), obs["vector"]
    own = net.bodies[1]
    for layer, norm in zip(own.dense, own.norms if layer_norm else [torch.nn.Identity()] * 2, strict=True):
        x = torch.relu(norm(layer(x)))
    x = net.dense[0](torch.cat((index, x), 1))
    x = torch.relu(net.norms[0](x) if layer_norm else x)
    torch.testing.assert_close(net(obs), net.head(x).unflatten(1, (5, 2)))


def test_dueling_advantages_have_mean_zero():
    net = network(LAYOUTS["vector"][0], dueling=True, hidden=[16])
    obs = LAYOUTS["vector"][1]
    x = torch.relu(net.dense[0](obs))
    torch.testing.assert_close(net(obs).mean(1), net.state_value(x))


def test_a_body_that_cannot_see_such_an_image_is_refused():
    with pytest.raises(
        ValueError, match="must be small_cnn or impala for images under 36 pixels, got nature_cnn for 10x10"
    ):
        network(LAYOUTS["small"][0], body="nature_cnn")


def test_impala_has_the_sizes_of_the_paper_and_is_read_as_written_out():
    layout, obs = LAYOUTS["atari"]
    net = network(layout, body="impala", hidden=[256])
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    stages = [
        shape
        for out, before in ((16, 4), (32, 16), (32, 32))
        for shape in [(out, before, 3, 3), *[(out, out, 3, 3)] * 4]
    ]
    assert shapes == [*stages, (256, 11 * 11 * 32), (10, 256)]
    x, layers = obs.float() / 255, iter(net.bodies[0].convolutions)
    for _ in range(3):
        x = torch.nn.functional.max_pool2d(next(layers)(x), 3, 2, padding=1)
        for _ in range(2):
            inner = next(layers)(torch.relu(x))
            x = x + next(layers)(torch.relu(inner))
    x = torch.relu(net.dense[0](torch.relu(x).permute(0, 2, 3, 1).flatten(1)))
    torch.testing.assert_close(net(obs), net.head(x).unflatten(1, (5, 2)), atol=1e-5, rtol=1e-4)


def test_impala_sees_small_images_too():
    layout, obs = LAYOUTS["small"]
    assert network(layout, body="impala")(obs).shape == (3, 5, 2)


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6)])
def test_a_noisy_layer_is_a_dense_layer_with_the_weights_of_the_paper(shape):
    torch.manual_seed(0)
    layer, x = NoisyLinear(6, 5, 0.5), torch.randn(shape)
    assert layer.noise_weight[0, 0].item() == pytest.approx(0.5 / 6**0.5)
    with torch.no_grad():
        layer.noise_weight.mul_(torch.randn(5, 6))
        layer.noise_bias.mul_(torch.randn(5))
    draw = noise(seed=3).generator
    before, behind = torch.randn(6, generator=draw), torch.randn(5, generator=draw)
    before, behind = (e.sign() * e.abs().sqrt() for e in (before, behind))
    weight = layer.weight + layer.noise_weight * behind[:, None] * before
    bias = layer.bias + layer.noise_bias * behind
    torch.testing.assert_close(layer(x, noise(seed=3)), x @ weight.T + bias)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


def test_noise_is_one_for_the_batch_or_one_for_each_row():
    layout, obs = LAYOUTS["vector"]
    net = network(layout, noisy=True)
    same = obs[:1].expand(4, -1)
    shared, own = net(same, noise=noise()), net(same, noise=noise(rows=4))
    torch.testing.assert_close(shared, shared[:1].expand_as(shared))
    assert (own[1:] - own[:-1]).abs().min() > 0
    torch.testing.assert_close(net(same), net(same[:1]).expand(4, -1, -1))


def test_noise_is_right_on_average():
    net = network(LAYOUTS["vector"][0], noisy=True)
    layer, x = net.head, torch.randn(1, 128)
    many = layer(x.expand(20_000, -1), noise(rows=20_000))
    spread = many.std(0) / 20_000**0.5
    assert ((many.mean(0) - layer(x)[0]).abs() < 5 * spread).all()
    assert many.std(0).min() > 0.01


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("name", ["vector", "atari", "all"])
@pytest.mark.parametrize("hidden", [[16], [16, 8]])
def test_a_network_is_asked_for_fractions(name, hidden, noisy):
    layout, obs = LAYOUTS[name]
    net = network(layout, width=1, cosines=8, hidden=hidden, dueling=True, noisy=noisy)
    fractions = torch.rand(3, 4)
    some = noise(rows=3) if noisy else None
    out = net(obs, fractions, some)
    assert out.shape == (3, 5, 4)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    torch.testing.assert_close(net(obs, fractions[:1]), net(obs, fractions[:1].expand(3, -1)))
    swapped = net(obs, fractions.flip(1))
    torch.testing.assert_close(net(obs, fractions), swapped.flip(2))


@pytest.mark.parametrize("hidden", [[16], [16, 8]])
def test_fractions_come_in_as_written_out(hidden):
    layout, obs = LAYOUTS["vector"]
    net = network(layout, width=1, cosines=6, hidden=hidden)
    fractions = torch.rand(3, 2)
    out = net(obs, fractions)
    for b in range(3):
        for k in range(2):
            waves = torch.tensor([torch.cos(torch.pi * i * fractions[b, k]) for i in range(6)])
            x = torch.relu(net.dense[0](obs[b])) * torch.relu(net.cosines.dense(waves))
            for layer in net.dense[1:]:
                x = torch.relu(layer(x))
            torch.testing.assert_close(out[b, :, k], net.head(x))
