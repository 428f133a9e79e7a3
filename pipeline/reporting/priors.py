"""Section "priors": the embeddings of the captions, which the student's domain prompts are distilled from."""

import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.reporting import style as style
from pipeline.reporting.blocks import Block, Figure, Missing, pretty
from pipeline.reporting.data import captioned, centre
from pipeline.reporting.inputs import EMBED, INDEX, Inputs
from student.images.files import read_8_bit
from student.images.picture import ImageFileError, read_file

FEWEST = 6
"""Images below which a map of them says nothing."""
NEAREST = 5
MOST_LABELS = 8
EQUAL = "; the more images share a point, the larger it is"


def maps(inputs: Inputs) -> Iterator[Block]:
    """t-SNE coloured by domain and by data set, with the silhouette in the original space."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    vectors, sample = _enough(inputs), inputs.sample
    distinct, number = np.unique(vectors, axis=0, return_inverse=True)
    differ = f"{len(distinct)} of {len(vectors)} priors differ"
    if len(distinct) < FEWEST:
        distinct, number = vectors, np.arange(len(vectors))
    # Equal priors are one point: t-SNE would lay them out as a ring. 50 components are what t-SNE's author recommends.
    reduced = PCA(min(50, *distinct.shape), random_state=inputs.config.seed).fit_transform(distinct)
    perplexity = min(inputs.config.perplexity, (len(distinct) - 1) / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PCA initialisation when all priors are equal
        places = TSNE(perplexity=perplexity, init="random", random_state=inputs.config.seed).fit_transform(reduced)
    for kind, labels in (("domain", sample.domains), ("data set", _fewer(sample.datasets))):
        names = sorted(set(labels))
        score = float(silhouette_score(vectors, labels, metric="cosine")) if 1 < len(names) < len(vectors) else None
        figure, axes = style.canvas(4.6 + 0.15 * len(names))
        color, marker = style.colors(names), style.markers(names)
        for name in names:
            points, images = np.unique(number[labels == name], return_counts=True)
            x, y = places[points].T
            shown = " + ".join(map(pretty, name.split(" + ")))
            axes[0, 0].scatter(
                x, y, s=22 * np.sqrt(images), c=color[name], marker=marker[name], alpha=0.75, linewidths=0, label=shown
            )
        axes[0, 0].set(xticks=[], yticks=[])
        axes[0, 0].grid(False)
        axes[0, 0].spines[:].set_visible(True)
        columns = 1 if max(map(len, names)) > 24 else 2
        figure.legend(loc="outside lower center", ncols=columns, markerscale=1.4, fontsize=10)
        apart = "" if score is None else f"Silhouette by {kind} {score:.2f} (1: apart, 0: overlapping). "
        yield Figure(
            f"priors-tsne-{kind.replace(' ', '-')}",
            f"Map of the priors by {kind}",
            f"{apart}{_purity(vectors, labels, kind) if len(names) > 1 else ''}{differ}"
            f"{EQUAL if len(distinct) < len(vectors) else ''}. {sample.rule}",
            style.png(figure),
            f"t-SNE map: every point is the prior of one image, coloured by {kind}. Only neighbourhoods mean something "
            "on it, distances between groups do not.",
        )


def similarity(inputs: Inputs) -> Iterator[Block]:
    """Cosines within and between domains."""
    vectors, domains = _enough(inputs), inputs.sample.domains
    names = sorted(set(domains))
    cosine = vectors @ vectors.T
    other = ~np.eye(len(vectors), dtype=bool)
    same = domains[:, None] == domains
    within, between = cosine[same & other], cosine[~same]
    mean = np.full((len(names), len(names)), np.nan)
    for i, one in enumerate(names):
        for j, two in enumerate(names):
            chosen = cosine[np.ix_(domains == one, domains == two)][other[np.ix_(domains == one, domains == two)]]
            mean[i, j] = chosen.mean() if len(chosen) else np.nan
    figure, axes = style.canvas(1.6 + 0.75 * len(names))
    labels = [pretty(name) for name in names]
    style.heatmap(axes[0, 0], mean, labels, labels)
    if len(names) < 2:
        verdict = f"Two images have a mean cosine of {within.mean():.2f}."
    else:
        gap = within.mean() - between.mean()
        verdict = (
            f"Two images of one domain have a mean cosine of {within.mean():.2f}, of two domains {between.mean():.2f}: "
            + ("the prior tells domains apart." if gap > 0.1 else "the prior hardly tells domains apart.")
        )
    yield Figure(
        "priors-similarity",
        "Similarity of the priors",
        verdict,
        style.png(figure),
        "Heat map: mean cosine between the priors of two images, by their domains.",
    )
    figure, axes = style.canvas(3.0)
    edges = np.linspace(min(cosine.min(), 0), 1, 60)
    for values, label, color in ((within, "same domain", style.GOOD), (between, "different domains", style.PALETTE[1])):
        if len(values):
            axes[0, 0].hist(values, edges, density=True, alpha=0.65, color=color, label=label)
    axes[0, 0].set(xlabel="cosine between two priors", ylabel="density", yticks=[])
    axes[0, 0].legend()
    overlap = float(np.mean(between > np.median(within))) if len(between) else 0.0
    yield Figure(
        "priors-cosines",
        "Within and between domains",
        f"{overlap:.1%} of the pairs of different domains are more alike than the median pair of one domain."
        if len(between)
        else f"There is one domain; the middle half of its cosines lies between {np.quantile(within, 0.25):.2f} and "
        f"{np.quantile(within, 0.75):.2f}.",
        style.png(figure),
        "Histograms of the cosine between priors, of the same domain and of different domains.",
    )


def neighbours(inputs: Inputs) -> Iterator[Block]:
    """One image of each domain and the images whose priors are nearest to its own."""
    vectors, sample = _enough(inputs), inputs.sample
    unreadable = []
    for domain in sorted(set(sample.domains)):
        members = np.flatnonzero(sample.domains == domain)
        # The member most like its domain's mean: a typical image, not an accident of its hash.
        query = int(members[np.argmax(vectors[members] @ vectors[members].mean(0))])
        cosines = vectors @ vectors[query]
        nearest = [int(i) for i in np.argsort(-cosines, kind="stable") if i != query][:NEAREST]
        try:
            tiles = [
                captioned(_tile(inputs, number), "query" if number == query else f"{cosines[number]:.3f}")
                for number in [query, *nearest]
            ]
        except (ImageFileError, OSError, KeyError) as error:
            unreadable.append(str(error))
            continue
        agree = sum(sample.domains[number] == domain for number in nearest)
        yield Figure(
            f"priors-neighbours-{domain}",
            f"Nearest priors: {pretty(domain)}",
            f"{agree} of the {len(nearest)} images nearest to the first, a typical {pretty(domain)} image, are of its "
            f"domain; of the first the teacher says: “{max(inputs.captions[query].values(), key=len)}”",
            style.picture(_grid(tiles)),
            f"A {pretty(domain)} image and the images with the most similar priors, with their cosine.",
        )
    if unreadable:
        raise Missing(f"{len(unreadable)} neighbours cannot be shown, the first: {unreadable[0]}", INDEX)


def _enough(inputs: Inputs) -> np.ndarray:
    if len(inputs.sample.sha256s) < FEWEST:
        raise Missing(f"{len(inputs.sample.sha256s)} priors are too few for a map ({FEWEST} at least)", EMBED)
    return inputs.vectors


def _fewer(labels: np.ndarray) -> np.ndarray:
    """The largest groups by name, the rest as "others": more colours could not be told apart."""
    names, sizes = np.unique(labels, return_counts=True)
    if len(names) <= MOST_LABELS:
        return labels
    kept = set(names[np.argsort(-sizes, kind="stable")][: MOST_LABELS - 1])
    return np.array([label if label in kept else "others" for label in labels])


def _purity(vectors: np.ndarray, labels: np.ndarray, kind: str) -> str:
    """How often the nearest other image is of the same group, beside what chance gives."""
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    hits = float(np.mean(labels[cosine.argmax(1)] == labels))
    sizes = np.unique(labels, return_counts=True)[1]
    chance = float((sizes * (sizes - 1)).sum() / (len(labels) * (len(labels) - 1)))
    return f"{hits:.0%} of the images have their nearest neighbour in their own {kind} (by chance {chance:.0%}). "


def _tile(inputs: Inputs, number: int, side: int = 160) -> Image.Image:
    sha256 = inputs.sample.sha256s[number]
    if sha256 not in inputs.image_paths:
        raise ImageFileError(f"image {sha256[:12]} is not in the index")
    image = read_8_bit(read_file(inputs.image_paths[sha256]))
    image = centre(image, min(image.size))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _grid(tiles: list[Image.Image], columns: int = 3) -> Image.Image:
    width, height = tiles[0].width + 6, tiles[0].height + 6
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width - 6, rows * height - 6), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, ((number % columns) * width, (number // columns) * height))
    return sheet


BLOCKS = (maps, similarity, neighbours)
