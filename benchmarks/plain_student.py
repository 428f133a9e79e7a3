"""The baseline of bench_student: the published Restormer student's function, formulated plainly.

NCHW throughout; LayerNorm by rearranging to [B, H·W, C] and back; the prompt enters through attention with one query a
pixel and one key; queries and keys of the channel attention are normalised explicitly. Parameters of the backbone bear
the published names; the prompt branch, a few vectors an image, is the student's. Not for use: it is measured against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.model import Student
from student.network.config import ModelConfig
from student.network.prompts import PromptBranch
from student.network.published_layout import to_published


class PlainLayerNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.LayerNorm(channels)  # for its parameters alone

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2).contiguous()
        mean = rows.mean(-1, keepdim=True)
        variance = rows.var(-1, keepdim=True, unbiased=False)
        rows = (rows - mean) / torch.sqrt(variance + 1e-5) * self.body.weight + self.body.bias
        return rows.transpose(1, 2).contiguous().unflatten(2, x.shape[2:])


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


def resample(before: int, after: int, shuffle: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), shuffle)})


class PlainStack(nn.ModuleList):
    def forward(self, x: Tensor, prompt: Tensor | None) -> Tensor:
        for block in self:
            x = block(x, prompt)
        return x


class PlainStudent(nn.Module):
    """The published dual-pool Restormer student of `config`, three levels deep."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, dim = config.width, config.prompt_dim

        def stack(count: int, channels: int, heads: int, prompt_dim: int) -> PlainStack:
            return PlainStack(PlainBlock(channels, heads, config.ffn_expansion, prompt_dim) for _ in range(count))

        def conv(before: int, after: int, size: int = 3) -> nn.Conv2d:
            return nn.Conv2d(before, after, size, padding=size // 2, bias=False)

        self.patch_embed = nn.ModuleDict({"proj": conv(3, width)})
        for i in (1, 2, 3):
            channels, lower, heads = width << i - 1, width << i, config.heads[i - 1]
            self.add_module(f"encoder_level{i}", stack(config.encoder_blocks[i - 1], channels, heads, 0))
            self.add_module(f"down{i}_{i + 1}", resample(channels, channels // 2, nn.PixelUnshuffle(2)))
            self.add_module(f"up{i + 1}_{i}", resample(lower, 2 * lower, nn.PixelShuffle(2)))
            self.add_module(
                f"decoder_level{i}", stack(config.decoder_blocks[i - 1], max(channels, 2 * width), heads, dim)
            )
        self.latent_blocks = stack(config.latent_blocks, 8 * width, config.heads[3], dim)
        self.reduce_chan_level3 = conv(8 * width, 4 * width, 1)
        self.reduce_chan_level2 = conv(4 * width, 2 * width, 1)
        self.refinement = stack(config.refinement_blocks, 2 * width, config.heads[0], dim)
        self.output = conv(2 * width, 3)
        self.prompts = PromptBranch(config, width, 8 * width)

    def load(self, student: Student, dead: float = 0.02) -> "PlainStudent":
        """With `student`'s weights, and queries and keys, which cannot change the output, of deviation `dead`."""
        weights = student.state_dict() | to_published(student.state_dict(), student.config)
        for name, tensor in weights.items():
            if "cross_attn_q" in name or "cross_attn_k" in name:
                tensor.normal_(0, 1).mul_(dead)
        self.load_state_dict({name: weights[name] for name in self.state_dict()})
        return self.eval()

    def forward(self, lq: Tensor) -> Tensor:
        """Restore `lq` [B, 3, H, W]; H and W multiples of 8."""
        x = self.patch_embed["proj"](lq)
        first, skips = x, []
        for i in (1, 2, 3):
            skips.append(self.get_submodule(f"encoder_level{i}")(x, None))
            x = self.get_submodule(f"down{i}_{i + 1}.body")(skips[-1])
        prompt = self.prompts(first, x).fused
        x = self.latent_blocks(x, prompt)
        for i in (3, 2, 1):
            x = torch.cat((self.get_submodule(f"up{i + 1}_{i}.body")(x), skips[i - 1]), dim=1)
            if i > 1:
                x = self.get_submodule(f"reduce_chan_level{i}")(x)
            x = self.get_submodule(f"decoder_level{i}")(x, prompt)
        return self.output(self.refinement(x, prompt)) + lq
