"""Adaptive gated fusion: how one block takes the image's prompt in (arXiv 2603.01725).

`prepare` turns the prompt into a few vectors an image; `forward` applies them to the features.

Shapes: B batch, H, W height and width, C channels, D dimension of the prompt, T prompt tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Condition = tuple[Tensor, ...]
"""What `prepare` hands to `forward`. Prompts of batch size 1 serve a batch of any size: the tiles of one image."""


class GatedFusion(nn.Module):
    """The two learned gates that all kinds share: (w_f, w_p) = softmax([feature weight, prompt weight])."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.full((2,), 0.5))

    def weights(self) -> tuple[Tensor, ...]:
        return self.gate.softmax(0).unbind()


class AffineFusion(GatedFusion):
    """x_in = gain·x + shift, with a gain and a shift [B, 1, 1, C] (or a scalar gain) from `prepare`."""

    def forward(self, x_BHWC: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        # addcmul reads and writes the features once; its operands must share a dtype, or autocast's half features
        # would be promoted to fp32.
        return torch.addcmul(shift.to(x_BHWC.dtype), x_BHWC, gain.to(x_BHWC.dtype))


class BroadcastFusion(AffineFusion):
    """The published cross-attention to one prompt token, collapsed: with one token its softmax is 1 at every pixel.

    x_in = w_f·x + W_o(W_v LN(p)·w_p + b_v·w_p) + b_o: equal to the published formulation to rounding, without its
    query and key projections, which never receive a gradient.
    """

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.value, self.out = nn.Linear(dim, channels), nn.Linear(channels, channels)

    def prepare(self, fused_BD: Tensor) -> Condition:
        w_feature, w_prompt = self.weights()
        return w_feature, self.out(self.value(self.norm(fused_BD)) * w_prompt)[:, None, None]


class ModulationFusion(AffineFusion):
    """[authors' code] `adaptive_modulation`: x·w_f·(1 + scale·w_p) + shift·w_p; an MLP gives scale and shift."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, 2 * channels))

    def prepare(self, fused_BD: Tensor) -> Condition:
        w_feature, w_prompt = self.weights()
        scale, shift = self.mlp(fused_BD).chunk(2, dim=-1)
        return (w_feature * (1 + scale * w_prompt))[:, None, None], (shift * w_prompt)[:, None, None]


class ConcatFusion(GatedFusion):
    """[authors' code] `concat`: a 1×1 convolution over [w_f·x, w_p·projected prompt].

    The prompt's half is the same at every pixel, so it is computed once an image and never concatenated.
    """

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.project = nn.Linear(dim, channels)
        self.mix = nn.Linear(2 * channels, channels)

    def prepare(self, fused_BD: Tensor) -> Condition:
        w_feature, w_prompt = self.weights()
        of_features, of_prompt = self.mix.weight.chunk(2, dim=1)
        shift_BC = F.linear(self.project(fused_BD) * w_prompt, of_prompt, self.mix.bias)
        return of_features * w_feature, shift_BC[:, None, None]

    def forward(self, x_BHWC: Tensor, weight_CC: Tensor, shift: Tensor) -> Tensor:
        mixed = F.linear(x_BHWC, weight_CC.to(x_BHWC.dtype))
        return mixed + shift.to(mixed.dtype)


class TokenFusion(GatedFusion):
    """[ours] What the paper's formula says: cross-attention, at the block's resolution, over several prompt tokens.

    One head, gated as in `BroadcastFusion`, to which it reduces with one token. The query projection is folded into
    the T keys and the output projection into the T values, so a pixel costs 2·T·C multiplications instead of 2·C².
    The key projection has no bias: it would shift all of a pixel's scores alike, which softmax ignores.
    """

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(dim, channels, bias=False)
        self.value = nn.Linear(dim, channels)
        self.out = nn.Linear(channels, channels)

    def prepare(self, tokens_BTD: Tensor, log_weight_BT: Tensor) -> Condition:
        w_feature, w_prompt = self.weights()
        tokens_BTD = self.norm(tokens_BTD)
        key_BTC = self.key(tokens_BTD) * (w_prompt * w_feature * self.query.out_features**-0.5)
        value_BTC = self.value(tokens_BTD) * w_prompt
        offset_BT = key_BTC @ self.query.bias + log_weight_BT
        return w_feature, key_BTC @ self.query.weight, offset_BT[:, None], value_BTC @ self.out.weight.T

    def forward(self, x_BHWC: Tensor, gain: Tensor, key_BTC: Tensor, offset: Tensor, value_BTC: Tensor) -> Tensor:
        x_BPC, dtype = x_BHWC.flatten(1, 2), x_BHWC.dtype
        score_BPT = x_BPC @ key_BTC.mT.to(dtype) + offset.to(dtype)
        attended_BPC = score_BPT.softmax(-1).to(dtype) @ value_BTC.to(dtype)
        kept_BPC = torch.addcmul(self.out.bias.to(dtype), x_BPC, gain.to(dtype))
        return (kept_BPC + attended_BPC).view_as(x_BHWC)


FUSIONS = {"broadcast": BroadcastFusion, "modulation": ModulationFusion, "concat": ConcatFusion, "tokens": TokenFusion}
