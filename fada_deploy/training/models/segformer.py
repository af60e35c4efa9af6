"""SegFormer-B0 (Xie et al., NeurIPS 2021): a hierarchical transformer with an MLP decoder at 1/4.

Widths and parameter names are the published ones, so that its ImageNet weights (MiT-B0) load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import Norm, resize_to

Size = tuple[int, int]


def to_map(tokens: Tensor, size_hw: Size) -> Tensor:
    """Reshape tokens (B, h · w, C) to a map (B, C, h, w)."""
    x: Tensor = tokens.transpose(1, 2).unflatten(2, size_hw)
    return x


def to_tokens(x: Tensor) -> Tensor:
    """Reshape a map (B, C, h, w) to tokens (B, h · w, C)."""
    return x.flatten(2).transpose(1, 2)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer with weight (D, C) and bias (D,) to each pixel of (B, C, h, w)."""
    return F.conv2d(x, weight[:, :, None, None], bias)


class PatchEmbed(nn.Module):
    """Embed overlapping patches as tokens, reducing the resolution by `stride`."""

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
    """Self-attention with keys and values from a map downsampled by `reduction`."""

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
        """Map tokens (B, h · w, C) to the same shape."""
        reduced = tokens
        if self.reduction > 1:
            reduced = self.norm(to_tokens(self.sr(to_map(tokens, size_hw))))
        key, value = (self._split_heads(part) for part in self.kv(reduced).chunk(2, -1))
        # Written out because F.scaled_dot_product_attention exports shape computations to ONNX.
        scores = self._split_heads(self.q(tokens)) * self.scale @ key.transpose(2, 3)
        attended = scores.softmax(-1) @ value
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """Map (B, N, C) to (B, heads, N, C / heads)."""
        split: Tensor = tokens.unflatten(2, (self.heads, -1))
        return split.transpose(1, 2)


class DepthwiseConv(nn.Module):
    """The depthwise 3×3 convolution of `MixFFN`; it gives the tokens positional information."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        out: Tensor = self.dwconv(x)
        return out


class MixFFN(nn.Module):
    """Two pointwise layers with a depthwise convolution in between.

    It works on maps instead of tokens: the hidden layer is four times as wide as the tokens, and
    transposing it costs more than the matrix multiplications.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        hidden = F.gelu(self.dwconv(pointwise(x, self.fc1.weight, self.fc1.bias)))
        return pointwise(hidden, self.fc2.weight, self.fc2.bias)


class Block(nn.Module):
    """An attention and a feed-forward layer, each with a LayerNorm before it and a shortcut."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MixFFN(channels, 4 * channels)

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map tokens (B, h · w, C) to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens), size_hw)
        out: Tensor = tokens + to_tokens(self.mlp(to_map(self.norm2(tokens), size_hw)))
        return out


class Projection(nn.Module):
    """A pointwise layer with its published parameter names."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, outer)


class Fuse(nn.Module):
    """A pointwise layer and its normalization with their published parameter names."""

    def __init__(self, inner: int, outer: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn = norm(outer)


class Decoder(nn.Module):
    """Project all maps to one width, resize them to the largest, concatenate and fuse them."""

    def __init__(self, widths: tuple[int, ...], outer: int, norm: Norm) -> None:
        super().__init__()
        for i, width in enumerate(widths, 1):
            self.add_module(f"linear_c{i}", Projection(width, outer))
        self.linear_fuse = Fuse(len(widths) * outer, outer, norm)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map (B, C_i, h_i, w_i), the largest first, to (B, outer, h_1, w_1).

        All steps are linear, and the pointwise ones commute with resizing. The product of
        projection and fusion is therefore applied to each map at its own size, with a twentieth of
        the arithmetic of the published order.
        """
        # The published concatenation starts with the smallest map.
        slices = reversed(self.linear_fuse.conv.weight[:, :, 0, 0].chunk(len(maps), 1))
        fused = maps[0].new_zeros(())
        for i, (x, fuse) in enumerate(zip(maps, slices, strict=True), 1):
            linear = self.get_submodule(f"linear_c{i}.proj")
            assert isinstance(linear, nn.Linear)
            weight, bias = fuse @ linear.weight, fuse @ linear.bias
            fused = fused + resize_to(pointwise(x, weight, bias), maps[0])
        return F.relu(self.linear_fuse.bn(fused))


class SegFormer(nn.Module):
    """Map normalized RGB (B, 3, H, W) to features (B, 256, H/4, W/4); H and W divisible by 8."""

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
        """Map (B, 3, H, W) to (B, 256, H/4, W/4)."""
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
    """Initialize an encoder layer as published; the decoder keeps PyTorch's initialization."""
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
    """Return SegFormer-B0: 3.7 M parameters including its segmentation head.

    `norm` applies to the decoder; the encoder has LayerNorms.
    """
    return SegFormer(norm)
