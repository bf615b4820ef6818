"""Bodies: from one input, as the environment gives it, to a flat vector of features."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlagents.types import named
from rlagents_envs.vector import Layout, Leaf

_WORD = 4  # bytes that move together
SMALL = 36  # pixels below which the Nature CNN has nothing left to look at


def has_pixels(layout: Layout) -> bool:
    """Returns whether any part of an observation is an image."""
    return any(leaf.kind == "pixels" for leaf in named(layout).values())


def computes_in_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class OneHot(nn.Module):
    """An index as a one-hot vector."""

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.features = leaf.size

    def prepare(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns [B, size] for indices [B]."""
        return F.one_hot(x, self.features).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the vector itself."""
        return x


class Flat(nn.Module):
    """Numbers, scaled and flattened, as they are or through dense layers of their own.

    Args:
        leaf: of any shape.
        hidden: widths of the dense layers, each followed by a ReLU.
        layer_norm: normalise what each ReLU gets.
    """

    def __init__(self, leaf: Leaf, hidden: tuple[int, ...] = (), *, layer_norm: bool = False) -> None:
        super().__init__()
        self._scale = leaf.scale
        sizes = [torch.Size(leaf.shape).numel(), *hidden]
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in hidden if layer_norm)
        self.features = sizes[-1]

    def prepare(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns [B, features] for inputs [B, *O]."""
        x = x.flatten(1).to(dtype)
        return x if self._scale == 1 else x * self._scale

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, features]."""
        for index, layer in enumerate(self.dense):
            x = layer(x)
            x = F.relu(self.norms[index](x) if self.norms else x)
        return x


class Images(nn.Module):
    """What every body of images has: a mean image, all zero at first, and how images are prepared.

    Args:
        leaf: an image, [channels, height, width].
        subtract_mean: have the mean image.
    """

    def __init__(self, leaf: Leaf, *, subtract_mean: bool) -> None:
        super().__init__()
        self.mean: Tensor | None
        self.register_buffer("mean", torch.zeros(leaf.shape) if subtract_mean else None)
        self._scale = leaf.scale
        self._frame = leaf.frame[0]  # channels
        self.layers: list[nn.Conv2d] = []

    def _hold(self, norms: list[nn.LayerNorm]) -> None:
        """Makes the convolutions in `layers`, in channels-last memory, and the norms parts of the module."""
        self.convolutions = nn.ModuleList(self.layers)
        self.convolutions.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.norms = nn.ModuleList(norms)

    def prepare(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns images [B, *O] in channels-last memory, unscaled: bytes are exact in bfloat16.

        Two passes, dtype first, are twice as fast as one `to` that does both.
        """
        x = x.to(dtype) if self.mean is None else (x - self.mean).to(dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def centre_(self, x: Tensor) -> None:
        """Takes the mean of the newest frames of images [B, *O], to be subtracted from each frame of a stack.

        Of bytes it is rounded, to be exact. Older frames do not count: before the first of an episode they
        are black, and a mean that is off by one lets a trace of the background through.

        A background that never changes drives every unit of the first layer the same way, and the first
        learner steps often push them all below zero for good; without it, they see what moves.
        """
        if self.mean is not None:
            mean = x[:, -self._frame :].float().mean(0)
            mean = mean if x.is_floating_point() else mean.round()
            self.mean.copy_(mean.repeat(len(self.mean) // self._frame, 1, 1))


class Convolutions(Images):
    """Convolutions with ReLU between them, in channels-last memory.

    Args:
        leaf: an image, [channels, height, width].
        layers: (channels, kernel, stride) of each convolution.
        layer_norm: normalise each convolution's output over channels and pixels, before the ReLU.
        subtract_mean: have a mean image that is subtracted.
    """

    def __init__(
        self, leaf: Leaf, layers: tuple[tuple[int, int, int], ...], *, layer_norm: bool, subtract_mean: bool
    ) -> None:
        super().__init__(leaf, subtract_mean=subtract_mean)
        channels, height, width = leaf.shape
        norms: list[nn.LayerNorm] = []
        for out, kernel, stride in layers:
            kernel = min(kernel, height, width)
            self.layers.append(nn.Conv2d(channels, out, kernel, stride))
            channels = out
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
            if layer_norm:
                norms.append(nn.LayerNorm([height, width, channels]))
        self._hold(norms)
        self.features = channels * height * width
        first = self.layers[0]
        sizes = (*leaf.shape[1:], *first.kernel_size)
        self._folds = (
            leaf.dtype == "uint8" and first.stride == (_WORD, _WORD) and not any(n % _WORD for n in sizes)
        )

    def prepare(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns images [B, *O] as `forward` wants them, unscaled: bytes are exact in bfloat16.

        On a CPU, where the first convolution goes in steps of four pixels, a picture is a grid of blocks of
        4x4 pixels that lie together: [B, 16, channels, height / 4, width / 4]. Four bytes move as one word,
        and the convolution becomes a small one over blocks, with 16 numbers side by side instead of 4.
        """
        if not self._folds or x.device.type != "cpu":
            return super().prepare(x, dtype)
        x = _folded(x).to(dtype)
        if self.mean is not None:  # differences of bytes are exact in bfloat16, too
            x -= _folded(self.mean.byte()).to(dtype)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, features]; what is scaled is the first weights, which are fewer than the pixels."""
        for index, layer in enumerate(self.layers):
            weight = layer.weight if index else layer.weight * self._scale
            if x.dim() == 5:
                x = F.conv3d(x, _blocks(weight), layer.bias).squeeze(2)
            else:
                x = F.conv2d(x, weight, layer.bias, layer.stride)
            if self.norms:
                x = _normalised(x, self.norms[index])
            x = F.relu(x)  # in place, where x is a view, autograd would copy every gradient
        return x.permute(0, 2, 3, 1).flatten(1)  # as it lies in memory: no copy


class Residual(Images):
    """The residual network of IMPALA (Espeholt et al. 2018, figure 3), in channels-last memory.

    Three stages: a convolution, a maximum over 3x3 every second pixel, and two blocks that add to their input
    what two convolutions make of it. Any size of image will do.

    Args:
        leaf: an image, [channels, height, width].
        layer_norm: normalise what each ReLU gets over channels and pixels.
        subtract_mean: have a mean image that is subtracted.
    """

    def __init__(self, leaf: Leaf, *, layer_norm: bool, subtract_mean: bool) -> None:
        super().__init__(leaf, subtract_mean=subtract_mean)
        channels, height, width = leaf.shape
        norms: list[nn.LayerNorm] = []
        for out in _STAGES:  # of each, the convolution before its blocks and the blocks' four
            self.layers.append(nn.Conv2d(channels, out, 3, padding=1))
            self.layers += [nn.Conv2d(out, out, 3, padding=1) for _ in range(4)]
            channels = out
            height, width = (height + 1) // 2, (width + 1) // 2
            if layer_norm:
                norms += [nn.LayerNorm([height, width, channels]) for _ in range(4)]
        if layer_norm:
            norms.append(nn.LayerNorm([height, width, channels]))
        self._hold(norms)
        self.features = channels * height * width

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, features]; what is scaled is the first weights, which are fewer than the pixels."""
        layers, norms = iter(self.layers), iter(self.norms)

        def fired(x: Tensor) -> Tensor:
            return F.relu(_normalised(x, next(norms)) if self.norms else x)

        for stage in range(len(_STAGES)):
            first = next(layers)
            weight = first.weight if stage else first.weight * self._scale
            x = F.max_pool2d(F.conv2d(x, weight, first.bias, padding=1), 3, 2, padding=1)
            for _ in range(2):
                inner = next(layers)(fired(x))
                x = x + next(layers)(fired(inner))
        return fired(x).permute(0, 2, 3, 1).flatten(1)  # as it lies in memory: no copy


def _folded(x: Tensor) -> Tensor:
    """Returns bytes [*, C, H, W] as blocks of 4x4 that lie together, [*, 16, C, H / 4, W / 4]."""
    *batch, channels, height, width = x.shape
    words = x.view(torch.int32).view(-1, channels, height // _WORD, _WORD, width // _WORD)
    blocks = words.transpose(3, 4).contiguous().view(torch.uint8)  # [*, C, H / 4, W / 4, 16]
    return blocks.view(*batch, channels, height // _WORD, width // _WORD, -1).movedim(-1, -4)


def _blocks(weight: Tensor) -> Tensor:
    """Returns the weights [O, C, 4 a, 4 b] of a convolution in steps of 4 pixels as those over blocks.

    These are [O, 16, C, a, b], with one step at a time over blocks, and over all channels at once.
    """
    out, channels, height, width = weight.shape
    pixels = weight.reshape(out, channels, height // _WORD, _WORD, width // _WORD, _WORD)
    return pixels.permute(0, 3, 5, 1, 2, 4).reshape(out, -1, channels, height // _WORD, width // _WORD)


def _normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Returns images normalised over height, width and channels, as they lie in memory."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


_STAGES = (16, 32, 32)  # channels of the residual network
LAYERS = {  # channels, kernel, stride
    "nature_cnn": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),  # Mnih et al. 2015, extended data table 1
    "arcade_cnn": ((16, 8, 4), (32, 4, 2)),  # Mnih et al. 2013, section 4.1: a third of the arithmetic
    "small_cnn": ((32, 3, 1), (64, 3, 1)),  # for grids of a few cells, where each pixel is one thing
}


def make(
    body: str,
    leaf: Leaf,
    *,
    vector_hidden: tuple[int, ...] = (),
    layer_norm: bool = False,
    subtract_mean: bool = False,
) -> OneHot | Flat | Convolutions | Residual:
    """Returns the body for one input; `auto` chooses by its kind and size."""
    if leaf.kind == "index":
        return OneHot(leaf)
    if leaf.kind == "vector":
        return Flat(leaf, vector_hidden, layer_norm=layer_norm)
    if body == "mlp":
        return Flat(leaf)
    if body == "auto":
        body = "small_cnn" if min(leaf.shape[1:]) < SMALL else "nature_cnn"
    if body == "impala":
        return Residual(leaf, layer_norm=layer_norm, subtract_mean=subtract_mean)
    if body != "small_cnn" and min(leaf.shape[1:]) < SMALL:
        raise ValueError(
            f"agent.network.body must be small_cnn or impala for images under {SMALL} pixels, got {body} for "
            f"{leaf.shape[1]}x{leaf.shape[2]}"
        )
    return Convolutions(leaf, LAYERS[body], layer_norm=layer_norm, subtract_mean=subtract_mean)
