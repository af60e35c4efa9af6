"""SegFormer-B0 (Xie et al., NeurIPS 2021): a hierarchical transformer with a decoder of pointwise layers, at 1/4.

The published widths and the published parameter names, so that its ImageNet weights (MiT-B0) load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import Norm, resize_to

Size = tuple[int, int]


def to_map(tokens: Tensor, size_hw: Size) -> Tensor:
    """Lay tokens (B, h · w, C) out as (B, C, h, w)."""
    laid_out: Tensor = tokens.transpose(1, 2).unflatten(2, size_hw)
    return laid_out


def to_tokens(x: Tensor) -> Tensor:
    """Flatten (B, C, h, w) to tokens (B, h · w, C)."""
    return x.flatten(2).transpose(1, 2)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer of weight (D, C) and bias (D,) to each pixel of (B, C, h, w)."""
    return F.conv2d(x, weight[:, :, None, None], bias)


class PatchEmbed(nn.Module):
    """Overlapping patches → tokens; `stride` times smaller."""

    def __init__(self, inner: int, outer: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(outer)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Map (B, inner, H, W) to tokens (B, h · w, outer) and (h, w)."""
        x = self.proj(x)
        height, width = x.shape[-2:]
        return self.norm(to_tokens(x)), (height, width)


class Attention(nn.Module):
    """Self-attention whose keys and values are of a map `reduction` times smaller."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction, self.scale = heads, reduction, (channels // heads) ** -0.5
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map tokens (B, h · w, C) to tokens of the same shape."""
        seen = tokens
        if self.reduction > 1:
            seen = self.norm(to_tokens(self.sr(to_map(tokens, size_hw))))
        key, value = (self._split(part) for part in self.kv(seen).chunk(2, -1))
        # Written out: PyTorch's own attention is exported with a computation of shapes around it.
        likeness = self._split(self.q(tokens)) * self.scale @ key.transpose(2, 3)
        mixed = likeness.softmax(-1) @ value
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        """Map (B, N, C) to (B, heads, N, C / heads)."""
        split: Tensor = tokens.unflatten(2, (self.heads, -1))
        return split.transpose(1, 2)


class DepthwiseConv(nn.Module):
    """The 3×3 by which the network knows where a token stands, under its published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to a map of the same shape."""
        out: Tensor = self.dwconv(x)
        return out


class MixFFN(nn.Module):
    """Two pointwise layers with a depthwise convolution between them.

    All on maps: the hidden ones are four times as wide as the tokens, and to transpose them costs more than
    to multiply them.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to a map of the same shape."""
        hidden = F.gelu(self.dwconv(pointwise(x, self.fc1.weight, self.fc1.bias)))
        return pointwise(hidden, self.fc2.weight, self.fc2.bias)


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MixFFN(channels, 4 * channels)

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map tokens (B, h · w, C) to tokens of the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens), size_hw)
        out: Tensor = tokens + to_tokens(self.mlp(to_map(self.norm2(tokens), size_hw)))
        return out


class Projection(nn.Module):
    """A pointwise layer under its published name."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, outer)


class Fuse(nn.Module):
    """A pointwise layer and its normalization under their published names."""

    def __init__(self, inner: int, outer: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn = norm(outer)


class Decoder(nn.Module):
    """All maps projected to one width, resized to the largest, concatenated and fused."""

    def __init__(self, widths: tuple[int, ...], outer: int, norm: Norm) -> None:
        super().__init__()
        for i, width in enumerate(widths, 1):
            self.add_module(f"linear_c{i}", Projection(width, outer))
        self.linear_fuse = Fuse(len(widths) * outer, outer, norm)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map (B, C_i, h_i, w_i), the largest first, to (B, outer, h_1, w_1).

        Projecting, resizing, concatenating and fusing are linear, and the pointwise ones commute with
        resizing: their product is applied to each map at its own size, for a twentieth of the arithmetic.
        """
        # The published concatenation begins with the smallest map.
        slices = reversed(self.linear_fuse.conv.weight[:, :, 0, 0].chunk(len(maps), 1))
        fused = maps[0].new_zeros(())
        for i, (x, fuse) in enumerate(zip(maps, slices, strict=True), 1):
            linear = self.get_submodule(f"linear_c{i}.proj")
            assert isinstance(linear, nn.Linear)
            weight, bias = fuse @ linear.weight, fuse @ linear.bias
            fused = fused + resize_to(pointwise(x, weight, bias), maps[0])
        return F.relu(self.linear_fuse.bn(fused))


class SegFormer(nn.Module):
    """(B, 3, H, W) normalized RGB → fused features (B, 256, H/4, W/4); H and W divisible by 8."""

    out_channels = 256

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        widths, heads, reductions = (32, 64, 160, 256), (1, 2, 5, 8), (8, 4, 2, 1)
        for i, (inner, width) in enumerate(zip((3, *widths), widths, strict=False), 1):
            kernel, stride = (7, 4) if i == 1 else (3, 2)
            self.add_module(
                f"patch_embed{i}", PatchEmbed(inner, width, kernel=kernel, stride=stride)
            )
            blocks = [Block(width, heads[i - 1], reductions[i - 1]) for _ in range(2)]
            self.add_module(f"block{i}", nn.ModuleList(blocks))
            self.add_module(f"norm{i}", nn.LayerNorm(width, eps=1e-6))
        self.apply(_initialize)
        self.decode_head = Decoder(widths, self.out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fused features."""
        maps = []
        for i in range(1, 5):
            tokens, size_hw = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"block{i}").children():
                tokens = block(tokens, size_hw)
            x = to_map(self.get_submodule(f"norm{i}")(tokens), size_hw)
            maps.append(x)
        fused: Tensor = self.decode_head(maps)
        return fused


def _initialize(module: nn.Module) -> None:
    """Start the encoder as published; the decoder starts as PyTorch starts it."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = (
            module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        )
        nn.init.normal_(module.weight, 0.0, (2 / fan_out) ** 0.5)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def segformer_b0(norm: Norm) -> SegFormer:
    """Return SegFormer-B0, 3.7 M parameters with its head; `norm` is the decoder's, the rest are LayerNorms."""
    return SegFormer(norm)
