"""The published checkpoints' layout: our state dict ↔ theirs, and the configuration that their names and shapes imply.

Every tensor of ours has one published counterpart (`counterpart`), and both directions go through it. The published
tensors that have none are query and key projections of attention over a single token: they cannot change the output.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from student.network.config import ModelConfig

Weights = dict[str, Tensor]

_PLACES = {
    "restormer": {
        "embed": "patch_embed.proj",
        "encoder": "encoder_level{above}",
        "down": "down{above}_{below}.body.0",
        "latent": "latent_blocks",
        "up": "up{below}_{above}.body.0",
        "reduce": "reduce_chan_level{below}",
        "decoder": "decoder_level{above}",
    },
    "nafnet": {
        "embed": "intro",
        "encoder": "encoders.{i}",
        "down": "downs.{i}",
        "latent": "middle_blks",
        "up": "ups.{up}.0",
        "decoder": "decoders.{up}",
        "output": "ending",
    },
}
"""The parts of a backbone; {i} counts levels from full resolution downwards, {up} from the deepest upwards."""
_BLOCK = {
    "attention.temperature": "attn.temperature",
    "attention.qkv_conv": "attn.qkv_dwconv",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.project_out",
    "ffn.expand": "ffn.project_in",
    "ffn.conv": "ffn.dwconv",
    "ffn.out": "ffn.project_out",
    "expand": "conv1",
    "conv": "conv2",
    "project": "conv3",
    "channel_gain": "sca.1",
    "ffn_expand": "conv4",
    "ffn_project": "conv5",
    "fusion.norm": "prompt_norm",
    "fusion.value": "cross_attn_v",
    "fusion.out": "cross_attn_out",
    "fusion.mlp": "prompt_mlp",
    "fusion.project": "prompt_projection",
    "fusion.mix": "prompt_fusion",
    "fusion.gate": "",  # the names of its scalars come after it
}
_BRANCH = {
    "task_pool": "degradation_prompt_pool",
    "domain_pool": "domain_prompt_pool",
    "task_query": "degradation_mapper",
    "domain_query": "domain_mapper",
    "conv1": "mapper.1",
    "conv2": "mapper.4",
    "project": "mapper.8",
    "fusion.norm": "prompt_fusion_norm",
    "fusion.ffn": "prompt_fusion_ffn",
    "fusion.out": "prompt_cross_attention.out_proj",
    "fusion.value.weight": "prompt_cross_attention.in_proj_weight",
    "fusion.value.bias": "prompt_cross_attention.in_proj_bias",
    "keys_ND": "prompt_keys",
    "values_NLD": "prompt_values",
    "aggregate": "value_aggregation",
}
_DEAD = re.compile(r"\.cross_attn_[qk]\.(weight|bias)$")
_GATE = ("feature_weight", "prompt_weight")


class NotPublished(ValueError):
    """The checkpoint or model has no counterpart in the other layout; the message names what."""


def _rename(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name


def _place(backbone: str, part: str, level: int, levels: int) -> str:
    return _PLACES[backbone][part].format(i=level, above=level + 1, below=level + 2, up=levels - 1 - level)


def counterpart(name: str, config: ModelConfig) -> str:
    """The published name of our parameter `name`; of a gate, the prefix of its two scalars."""
    if name.startswith("prompts."):
        part, _, rest = _rename(name.removeprefix("prompts."), _BRANCH).partition(".")
        return f"{part}.{_rename(rest, _BRANCH)}"
    part, _, rest = name.removeprefix("backbone.").partition(".")
    if part in ("encoder", "down", "up", "reduce", "decoder"):
        level, _, rest = rest.partition(".")
        place = _place(config.backbone, part, int(level), len(config.encoder_blocks))
    else:
        place = _PLACES[config.backbone].get(part, part)
    if part not in ("encoder", "latent", "decoder", "refinement"):
        return f"{place}.{rest.removeprefix('conv.')}"
    block, _, rest = rest.partition(".")
    if config.backbone == "restormer" and rest.startswith("norm"):
        rest = rest.replace(".", ".body.", 1)
    return f"{place}.{block}.{_rename(rest, _BLOCK)}"


def from_published(theirs: Weights, shapes: dict[str, torch.Size], config: ModelConfig) -> tuple[Weights, list[str]]:
    """Their weights as ours, for a model of these `shapes`, and the names of the dead tensors left out.

    Raises NotPublished with the names of tensors that are missing, unexpected or of another size.
    """
    rest, missing, ours = dict(theirs), [], {}
    for name, shape in shapes.items():
        source = counterpart(name, config)
        sources = [source + gate for gate in _GATE] if name.endswith("fusion.gate") else [source]
        if absent := [key for key in sources if key not in rest]:
            missing += absent
            continue
        tensor = torch.cat([rest.pop(key).reshape(-1) for key in sources]) if len(sources) > 1 else rest.pop(source)
        if ".in_proj_" in source:
            tensor = tensor.chunk(3)[2]
        # Sides of 1 come and go (a 1×1 convolution is a matrix here); a transposed weight has as many numbers, though.
        if [side for side in tensor.shape if side > 1] != [side for side in shape if side > 1]:
            raise NotPublished(f"{sources[0]}: {list(theirs[sources[0]].shape)} does not fit {list(shape)}")
        ours[name] = tensor.reshape(shape).contiguous()
    dead = [name for name in rest if _DEAD.search(name)]
    if unexpected := [name for name in rest if name not in dead]:
        raise NotPublished(f"unexpected tensors: {_some(unexpected)}")
    if missing:
        raise NotPublished(f"missing tensors: {_some(missing)}")
    if any(".in_proj_" in name for name in theirs):
        dead.append("prompt_cross_attention.in_proj_* (query and key thirds)")
    return ours, dead


def to_published(ours: Weights, config: ModelConfig) -> Weights:
    """Our weights in the published layout; the dead tensors, which that code insists on, are zeros.

    Raises NotPublished for a shape that the published classes cannot take.
    """
    levels = len(config.encoder_blocks)
    if config.backbone not in _PLACES:
        raise NotPublished(f"backbone {config.backbone}: the published code has Restormer and NAFNet alone")
    if config.fusion == "tokens":
        raise NotPublished("fusion tokens: the published code has no such fusion")
    if config.domain_pool and not config.task_pool:
        raise NotPublished("task_pool is off: no published class has the domain pool alone")
    if config.backbone == "restormer" and levels != 3:
        raise NotPublished(f"encoder_blocks has {levels} levels: the published Restormer has 3")
    theirs: Weights = {}
    for name, tensor in ours.items():
        target = counterpart(name, config)
        if name.endswith("fusion.gate"):
            theirs.update({target + gate: value[None] for gate, value in zip(_GATE, tensor, strict=True)})
        elif ".in_proj_" in target:
            theirs[target] = torch.cat((torch.zeros_like(tensor), torch.zeros_like(tensor), tensor))
        else:
            theirs[target] = tensor.reshape(_their_shape(target, tensor))
        if target.endswith("cross_attn_v.weight"):
            channels, stem = tensor.shape[0], target.removesuffix("v.weight")
            theirs[f"{stem}q.weight"] = tensor.new_zeros(channels, channels)
            theirs[f"{stem}k.weight"] = torch.zeros_like(tensor)
            theirs |= {f"{stem}{part}.bias": tensor.new_zeros(channels) for part in "qk"}
    return theirs


def _their_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """1×1 convolutions, attention temperatures and NAFNet's residual scales have extra dimensions of size 1 there; the
    pools' temperatures have none."""
    conv = r"(project_(in|out)|attn\.qkv|conv[1345]|sca\.1|prompt_fusion|reduce_chan_level\d|ups\.\d+\.0)\.weight$"
    if (re.search(conv, name) and tensor.ndim == 2) or name.endswith("attn.temperature"):
        return (*tensor.shape, 1, 1)
    if name.endswith("pool.temperature"):
        return ()
    return (1, *tensor.shape, 1, 1) if name.endswith((".beta", ".gamma")) else tuple(tensor.shape)


def infer_config(theirs: Weights, task_top_k: int | None, domain_top_k: int | None) -> ModelConfig:
    """The configuration that `theirs` was made with. Top-k leaves no trace in the weights: None takes the published
    default (task 3; domain 5, or 3 for NAFNet). Raises NotPublished when this is no published layout."""
    restormer = "patch_embed.proj.weight" in theirs
    if not restormer and "intro.weight" not in theirs:
        embeddings = "neither patch_embed.proj.weight (Restormer) nor intro.weight (NAFNet)"
        raise NotPublished(f"{embeddings} is in it; it begins with {_some(theirs)}")
    backbone = "restormer" if restormer else "nafnet"
    levels, latent = 3 if restormer else _count(theirs, "downs"), _PLACES[backbone]["latent"]
    encoder, decoder = ([_place(backbone, part, i, levels) for i in range(levels)] for part in ("encoder", "decoder"))
    shape: dict[str, object] = {
        "backbone": backbone,
        "width": theirs[f"{_PLACES[backbone]['embed']}.weight"].shape[0],
        "encoder_blocks": [_count(theirs, stack) for stack in encoder],
        "decoder_blocks": [_count(theirs, stack) for stack in decoder],
        "latent_blocks": _count(theirs, latent),
        "refinement_blocks": _count(theirs, "refinement") if restormer else 0,
    }
    if restormer:
        first = [f"{stack}.0" for stack in (*encoder, latent)]
        shape["heads"] = [_get(theirs, f"{block}.attn.temperature").shape[0] for block in first]
        shape["ffn_expansion"] = _expansion([_get(theirs, f"{block}.ffn.project_out.weight").shape for block in first])
    for pool, prefix, top_k in (("task", "degradation", task_top_k), ("domain", "domain", domain_top_k)):
        values = theirs.get(f"{prefix}_prompt_pool.prompt_values")
        shape[f"{pool}_pool"] = values is not None
        if values is not None:
            size, length, dim = values.shape
            if shape.setdefault("prompt_len", length) != length or shape.setdefault("prompt_dim", dim) != dim:
                raise NotPublished(f"the two pools' values differ in length or dimension: {list(values.shape)} is new")
            shape[f"{pool}_pool_size"] = size
            shape[f"{pool}_top_k"] = top_k if top_k is not None else 5 if restormer and pool == "domain" else 3
    if shape["task_pool"] and shape["domain_pool"] and "prompt_cross_attention.in_proj_weight" not in theirs:
        shape["pool_fusion"] = "concat"
    if f"{latent}.0.prompt_mlp.0.weight" in theirs:
        shape["fusion"] = "modulation"
    elif f"{latent}.0.prompt_projection.weight" in theirs:
        shape["fusion"] = "concat"
    return ModelConfig(zero_init_output=False, **shape)


def _expansion(shapes: list[torch.Size]) -> float:
    pairs = [(channels, hidden) for channels, hidden, *_ in shapes]
    for factor in (2.66, *(hidden / channels for channels, hidden in reversed(pairs))):
        if all(int(channels * factor) == hidden for channels, hidden in pairs):
            return factor
    raise NotPublished(f"no single ffn_expansion gives the (channels, hidden) pairs {pairs}")


def _get(theirs: Weights, name: str) -> Tensor:
    if name not in theirs:
        raise NotPublished(f"missing tensors: {name}")
    return theirs[name]


def _count(theirs: Weights, stack: str) -> int:
    found = {int(m[1]) for name in theirs if (m := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))}
    if not found:
        raise NotPublished(f"missing tensors: {stack}.0.*")
    if found != set(range(len(found))):
        raise NotPublished(f"{stack}.*: numbered up to {max(found)}, but only {len(found)} are there")
    return len(found)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
