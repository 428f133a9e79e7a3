"""Section "Priors": the captions as vectors, which the student's domain prompts are distilled from."""

import warnings
from collections.abc import Iterator

import numpy as np

from pipeline.reporting import style
from pipeline.reporting.blocks import Block, Figure, Gallery, Missing, pretty
from pipeline.reporting.data import UNREADABLE, pixels, png
from pipeline.reporting.inputs import EMBED, INDEX, Inputs, Sample

FEWEST = 6
"""Images below which a map of them says nothing."""
NEAREST = 5
PERPLEXITY = 30
"""Neighbours that t-SNE looks at; of few images at most a third."""


def tsne(inputs: Inputs) -> Iterator[Block]:
    """The priors on a plane, by domain; of one domain, by data set."""
    sample = _enough(inputs)
    vectors = sample.vectors
    distinct, number = np.unique(vectors, axis=0, return_inverse=True)
    if len(distinct) < FEWEST:
        distinct, number = vectors, np.arange(len(vectors))
    places = _places(distinct)
    domains = sorted(set(sample.domains))
    kind, labels = ("domain", sample.domains) if len(domains) > 1 else ("data set", sample.datasets)
    names = sorted(set(labels))
    figure, axes = style.canvas(4.6 + 0.15 * len(names))
    for place, name in enumerate(names):
        points, images = np.unique(number[labels == name], return_counts=True)
        axes[0, 0].scatter(
            *places[points].T, s=22 * np.sqrt(images), c=inputs.colours[name if kind == "domain" else domains[0]],
            marker=style.MARKERS[place % len(style.MARKERS)], alpha=0.75, linewidths=0, label=pretty(name),
        )  # fmt: skip
    axes[0, 0].set(xticks=[], yticks=[])
    axes[0, 0].spines[:].set_visible(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=10)
    equal = "; the more images share a point, the larger it is" if len(distinct) < len(vectors) else ""
    yield Figure(
        "Map of the priors",
        f"{_own(vectors, labels, kind) if len(names) > 1 else ''}{len(distinct)} of {len(vectors)} priors differ{equal}. "
        f"Only neighbourhoods mean something on it (t-SNE). {sample.rule}",
        style.png(figure),
        f"Every point is the prior of one image, by {kind}.",
        "priors-map",
    )


def neighbours(inputs: Inputs) -> Iterator[Block]:
    """A typical image of each domain and those whose priors are nearest to its own."""
    sample = _enough(inputs)
    vectors, shown, unreadable = sample.vectors, [], []
    for domain in sorted(set(sample.domains))[: inputs.config.max_datasets]:
        members = np.flatnonzero(sample.domains == domain)
        # The member most like its domain's mean: a typical image, not an accident of its hash.
        query = int(members[np.argmax(vectors[members] @ vectors[members].mean(0))])
        cosines = vectors @ vectors[query]
        nearest = [int(i) for i in np.argsort(-cosines, kind="stable") if i != query][:NEAREST]
        for i in (query, *nearest):
            try:
                row = inputs.clean[sample.sha256s[i]]
                image = png(pixels(row, row["gt_path"]))
            except (*UNREADABLE, KeyError) as error:
                unreadable.append(f"{sample.sha256s[i][:12]}: {error}")
                continue
            shown.append((image, f"{pretty(domain)}:" if i == query else f"{cosines[i]:.3f}"))
    if shown:
        told = f"A typical image of each domain, then the {NEAREST} whose priors are nearest to its own (cosine)."
        yield Gallery("Nearest priors", told, shown)
    if unreadable:
        raise Missing(f"{len(unreadable)} neighbour(s) cannot be shown, the first: {unreadable[0]}", INDEX)


def _enough(inputs: Inputs) -> Sample:
    if len(inputs.sample.sha256s) < FEWEST:
        raise Missing(f"{len(inputs.sample.sha256s)} priors are too few for a map ({FEWEST} at least)", EMBED)
    return inputs.sample


def _places(vectors: np.ndarray) -> np.ndarray:
    """`[n, 2]`, of different priors: t-SNE would lay equal ones out as a ring. 50 components are its author's advice."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # when all priors are equal
        perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
        return TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(reduced)


def _own(vectors: np.ndarray, labels: np.ndarray, kind: str) -> str:
    """How often the nearest other image is of the same group, beside what chance gives."""
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    hits = float(np.mean(labels[cosine.argmax(1)] == labels))
    sizes = np.unique(labels, return_counts=True)[1]
    chance = float((sizes * (sizes - 1)).sum() / (len(labels) * (len(labels) - 1)))
    return f"{hits:.0%} of the images have their nearest neighbour in their own {kind} (by chance {chance:.0%}). "


BLOCKS = (tsne, neighbours)
