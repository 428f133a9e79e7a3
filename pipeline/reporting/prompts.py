"""Section "prompts": which prompts the student uses for what, how alike they are, and how much they count."""

import re
from collections.abc import Iterator

import numpy as np

from pipeline.reporting import style as style
from pipeline.reporting.blocks import Block, Figure, Missing, pretty
from pipeline.reporting.inputs import TRAIN, Inputs


def usage(inputs: Inputs) -> Iterator[Block]:
    """Heat map of each pool: tasks or domains × prompts, from the last validation."""
    rows = [row for row in inputs.log if row.get("usage")]
    if not rows:
        raise Missing("the training log has no prompt usage yet (it is written at every validation)", TRAIN)
    for pool, by_label in rows[-1]["usage"].items():
        labels = sorted(by_label)
        shares = np.array([by_label[label] for label in labels], dtype=float)
        overall = shares.mean(0)
        used = np.exp(_entropy(overall))  # the number of equally used prompts of the same entropy
        own = float(np.mean([np.exp(_entropy(row)) for row in shares]))
        figure, axes = style.canvas(1.6 + 0.42 * len(labels))
        style.heatmap(
            axes[0, 0], shares, [pretty(label) for label in labels], [str(n) for n in range(shares.shape[1])], vmin=0
        )
        axes[0, 0].set_xlabel("prompt")
        split = _information(shares)
        yield Figure(
            f"prompts-usage-{pool}",
            f"Usage of the {pool} pool",
            f"{used:.1f} of {shares.shape[1]} prompts are in use (exponential of the entropy), {own:.1f} by one "
            f"{pool}; "
            f"the chosen prompts tell {split:.2f} of {np.log2(len(labels)):.2f} bits about the {pool}"
            + (": they hardly depend on it." if split < 0.1 * np.log2(max(len(labels), 2)) else "."),
            style.png(figure),
            f"Heat map: mean weight of every prompt of the {pool} pool, by {pool}, on validation images at step "
            f"{rows[-1]['step']}.",
        )


def keys(inputs: Inputs) -> Iterator[Block]:
    """Cosines between the keys of each pool."""
    found = {
        name.split(".")[-2].removesuffix("_pool"): tensor
        for name, tensor in inputs.weights.items()
        if name.endswith("keys_ND")
    }
    if not found:
        raise Missing("this student has no prompt pool", "set model.task_pool or model.domain_pool to true")
    for pool, tensor in sorted(found.items()):
        unit = tensor / np.linalg.norm(tensor, axis=1, keepdims=True)
        cosine = unit @ unit.T
        pairs = cosine[np.triu_indices(len(cosine), 1)]
        figure, axes = style.canvas(4.4)
        image = axes[0, 0].imshow(cosine, cmap=style.SEQUENTIAL, vmin=min(-0.2, cosine.min()), vmax=1)
        axes[0, 0].grid(False)
        axes[0, 0].set(xlabel="prompt", ylabel="prompt", xticks=range(len(cosine)), yticks=range(len(cosine)))
        axes[0, 0].tick_params(labelsize=8)
        figure.colorbar(image, ax=axes[0, 0], fraction=0.046, pad=0.03)
        alike = int((pairs > 0.9).sum())
        yield Figure(
            f"prompts-keys-{pool}",
            f"Keys of the {pool} pool",
            f"Two keys have a mean cosine of {pairs.mean():.2f}, at most {pairs.max():.2f}; "
            + (f"{alike} pairs are nearly equal (above 0.9)." if alike else "none are nearly equal (above 0.9)."),
            style.png(figure),
            f"Heat map: cosine between the {len(cosine)} keys of the {pool} pool.",
        )


def gates(inputs: Inputs) -> Iterator[Block]:
    """(w_f, w_p) of every block that takes a prompt."""
    found = {name: tensor for name, tensor in inputs.weights.items() if name.endswith("fusion.gate")}
    if not found:
        raise Missing("no block of this student takes a prompt", "set model.task_pool or model.domain_pool to true")
    names = sorted(found, key=_depth)
    gates = np.stack([found[name] for name in names]).astype(float)
    weights = np.exp(gates - gates.max(1, keepdims=True))
    prompt = weights[:, 1] / weights.sum(1)
    figure, axes = style.canvas(1.5 + 0.26 * len(names))
    labels = [_layer(name) for name in names]
    axes[0, 0].barh(labels, 1 - prompt, color="#c9ccd1", label="features, w_f")
    axes[0, 0].barh(labels, prompt, left=1 - prompt, color=style.GOOD, label="prompt, w_p")
    axes[0, 0].axvline(0.5, color=style.INK, linewidth=1, linestyle="--")
    axes[0, 0].invert_yaxis()
    axes[0, 0].tick_params(axis="y", labelsize=9)
    axes[0, 0].set(xlim=(0, 1), xlabel="share (dashed: where training starts)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)
    most, least = int(prompt.argmax()), int(prompt.argmin())
    yield Figure(
        "prompts-gates",
        "Gates of the blocks",
        f"The prompt's share w_p is {prompt.mean():.3f} on average, least in {labels[least]} ({prompt[least]:.3f}), "
        f"most in {labels[most]} ({prompt[most]:.3f}); every gate starts at 0.500."
        if np.ptp(prompt) > 5e-4
        else f"Every gate stands at {prompt.mean():.3f}; training starts at 0.500.",
        style.png(figure),
        "Bars: how each block weighs its features against the prompt, from the latent blocks to the output.",
    )


def _entropy(shares: np.ndarray) -> float:
    p = shares[shares > 0] / shares.sum()
    return float(-(p * np.log(p)).sum())


def _information(shares: np.ndarray) -> float:
    """Mutual information between label (all equally likely) and chosen prompt, in bits."""
    each = np.mean([_entropy(row) for row in shares])
    return float((_entropy(shares.mean(0)) - each) / np.log(2))


def _depth(name: str) -> tuple[int, int, int]:
    """Order of the forward pass: latent, decoder from its deepest level (the highest number), refinement."""
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    part = next(i for i, part in enumerate(("latent", "decoder", "refinement", "")) if part in name)
    return part, -numbers[0] if part == 1 else 0, numbers[-1]


def _layer(name: str) -> str:
    words = name.removeprefix("backbone.").removesuffix(".fusion.gate").split(".")
    return f"{words[0]} {'.'.join(words[1:])}"


BLOCKS = (usage, keys, gates)
