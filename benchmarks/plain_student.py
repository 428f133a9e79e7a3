"""The baseline of bench_student: the published Restormer student's function, formulated plainly.

NCHW throughout; LayerNorm by rearranging to [B, H·W, C] and back; the prompt enters through attention with one query a
pixel and one key; queries and keys of the channel attention are normalised explicitly. Parameters bear the published
names, so `student.network.published_layout.to_published` fills it. Not for use: it exists to be measured against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.network.config import ModelConfig


class PlainLayerNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(channels))
        self.body.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = x.flatten(2).transpose(1, 2).contiguous()
        mean = rows.mean(-1, keepdim=True)
        variance = rows.var(-1, keepdim=True, unbiased=False)
        rows = (rows - mean) / torch.sqrt(variance + 1e-5) * self.body.weight + self.body.bias
        return rows.transpose(1, 2).contiguous().unflatten(2, (height, width))


class PlainAttention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(x.shape[0], self.heads, -1, x.shape[2] * x.shape[3]) for part in parts)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.project_out((scores.softmax(-1) @ v).reshape(x.shape))


class PlainFeedForward(nn.Module):
    def __init__(self, channels: int, expansion: float):
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(a) * b)


class PlainBlock(nn.Module):
    def __init__(self, channels: int, heads: int, expansion: float, prompt_dim: int = 0):
        super().__init__()
        self.prompt_dim = prompt_dim
        self.norm1, self.attn = PlainLayerNorm(channels), PlainAttention(channels, heads)
        self.norm2, self.ffn = PlainLayerNorm(channels), PlainFeedForward(channels, expansion)
        if prompt_dim:
            self.feature_weight = nn.Parameter(torch.full((1,), 0.5))
            self.prompt_weight = nn.Parameter(torch.full((1,), 0.5))
            self.prompt_norm = nn.LayerNorm(prompt_dim)
            self.cross_attn_q = nn.Linear(channels, channels)
            self.cross_attn_k = nn.Linear(prompt_dim, channels)
            self.cross_attn_v = nn.Linear(prompt_dim, channels)
            self.cross_attn_out = nn.Linear(channels, channels)

    def fuse(self, x: Tensor, prompt: Tensor) -> Tensor:
        w_feature, w_prompt = torch.stack((self.feature_weight, self.prompt_weight)).softmax(0)
        pixels = x.flatten(2).transpose(1, 2)
        token = self.prompt_norm(prompt)[:, None]
        q = self.cross_attn_q(pixels) * w_feature
        k, v = self.cross_attn_k(token) * w_prompt, self.cross_attn_v(token) * w_prompt
        attended = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return x * w_feature + self.cross_attn_out(attended).transpose(1, 2).reshape(x.shape)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(self.fuse(x, prompt) if self.prompt_dim else x))
        return x + self.ffn(self.norm2(x))


class PlainPool(nn.Module):
    def __init__(self, size: int, top_k: int, length: int, dim: int):
        super().__init__()
        self.top_k = top_k
        self.prompt_keys = nn.Parameter(torch.randn(size, dim))
        self.prompt_values = nn.Parameter(torch.randn(size, length, dim))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.value_aggregation = nn.Sequential(nn.Linear(length * dim, dim), nn.LayerNorm(dim), nn.GELU())

    def forward(self, query: Tensor) -> Tensor:
        similarity = F.normalize(query, dim=1) @ F.normalize(self.prompt_keys, dim=1).T / self.temperature.clamp(0.1, 2)
        best, index = similarity.topk(self.top_k, dim=1)
        composed = (self.prompt_values[index] * best.softmax(1)[:, :, None, None]).sum(1)
        return self.value_aggregation(composed.flatten(1))


class PlainQuery(nn.Module):
    def __init__(self, channels: int, dim: int, grid: int):
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.mapper = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(grid), nn.Conv2d(channels, half, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(grid // 2), nn.Conv2d(half, quarter, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(quarter, dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mapper(x)


def _resample(before: int, after: int, shuffle: nn.Module) -> nn.Module:
    module = nn.Module()
    module.body = nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), shuffle)
    return module


class PlainStudent(nn.Module):
    """The published dual-pool Restormer student of `config`, three levels deep."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, dim = config.width, config.prompt_dim

        def stack(count: int, channels: int, heads: int, prompt_dim: int) -> nn.Sequential:
            return nn.Sequential(*(PlainBlock(channels, heads, config.ffn_expansion, prompt_dim) for _ in range(count)))

        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 3, padding=1, bias=False)
        for i in (1, 2, 3):
            setattr(
                self, f"encoder_level{i}", stack(config.encoder_blocks[i - 1], width << i - 1, config.heads[i - 1], 0)
            )
            down = _resample(width << i - 1, width << i - 1 >> 1, nn.PixelUnshuffle(2))
            setattr(self, f"down{i}_{i + 1}", down)
            setattr(self, f"up{i + 1}_{i}", _resample(width << i, width << i + 1, nn.PixelShuffle(2)))
            channels = width << max(i - 1, 1)
            setattr(self, f"decoder_level{i}", stack(config.decoder_blocks[i - 1], channels, config.heads[i - 1], dim))
        self.latent_blocks = stack(config.latent_blocks, width << 3, config.heads[3], dim)
        self.reduce_chan_level3 = nn.Conv2d(width << 3, width << 2, 1, bias=False)
        self.reduce_chan_level2 = nn.Conv2d(width << 2, width << 1, 1, bias=False)
        self.refinement = stack(config.refinement_blocks, width << 1, config.heads[0], dim)
        self.output = nn.Conv2d(width << 1, 3, 3, padding=1, bias=False)
        length = config.prompt_len
        self.domain_prompt_pool = PlainPool(config.domain_pool_size, config.domain_top_k, length, dim)
        self.degradation_prompt_pool = PlainPool(config.task_pool_size, config.task_top_k, length, dim)
        self.domain_mapper = PlainQuery(width, dim, 8)
        self.degradation_mapper = PlainQuery(width << 3, dim, 4)
        self.prompt_cross_attention = nn.MultiheadAttention(dim, 8, batch_first=True)
        self.prompt_fusion_norm = nn.LayerNorm(dim)
        self.prompt_fusion_ffn = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.GELU(), nn.Identity(), nn.Linear(2 * dim, dim)
        )

    def forward(self, lq: Tensor) -> Tensor:
        """Restore `lq` [B, 3, H, W]; H and W multiples of 8."""
        x = self.patch_embed.proj(lq)
        domain = self.domain_prompt_pool(self.domain_mapper(x))[:, None]
        skips = []
        for i in (1, 2, 3):
            for block in getattr(self, f"encoder_level{i}"):
                x = block(x, None)
            skips.append(x)
            x = getattr(self, f"down{i}_{i + 1}").body(x)
        task = self.degradation_prompt_pool(self.degradation_mapper(x))[:, None]
        prompt = self.prompt_fusion_norm(self.prompt_cross_attention(domain, task, task)[0] + domain)
        prompt = (prompt + self.prompt_fusion_ffn(prompt))[:, 0]
        for block in self.latent_blocks:
            x = block(x, prompt)
        for i in (3, 2, 1):
            x = torch.cat((getattr(self, f"up{i + 1}_{i}").body(x), skips[i - 1]), dim=1)
            if i > 1:
                x = getattr(self, f"reduce_chan_level{i}")(x)
            for block in getattr(self, f"decoder_level{i}"):
                x = block(x, prompt)
        for block in self.refinement:
            x = block(x, prompt)
        return self.output(x) + lq
