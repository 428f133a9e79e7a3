"""k-means on the unit sphere, for `model.domain_init: kmeans`."""

import numpy as np


def kmeans(embeddings_MD: np.ndarray, count: int, seed: int = 0, iterations: int = 50) -> np.ndarray:
    """`count` unit centroids [count, D] of unit rows [M, D], by cosine; the same result for the same seed.

    With fewer distinct rows than `count`, the remaining centroids are small perturbations of existing ones, since equal
    prompts would stay equal for ever. Raises ValueError without rows.
    """
    rows_MD = np.asarray(embeddings_MD, dtype=np.float32)
    if rows_MD.ndim != 2 or len(rows_MD) == 0:
        raise ValueError(f"k-means needs at least one embedding row, got an array of shape {list(rows_MD.shape)}")
    random = np.random.default_rng(seed)
    rows_MD = _unit(rows_MD)
    centroids = [rows_MD[random.integers(len(rows_MD))]]
    while len(centroids) < count:  # k-means++: far rows are likely starts
        distance_M = np.clip(1 - (rows_MD @ np.stack(centroids).T).max(axis=1), 0, None)
        distance_M[distance_M < 1e-6] = 0
        if distance_M.sum() > 0:
            centroids.append(rows_MD[random.choice(len(rows_MD), p=distance_M / distance_M.sum())])
        else:
            near = centroids[random.integers(len(centroids))]
            centroids.append(_unit(near + 0.1 * _unit(random.standard_normal(near.shape).astype(np.float32))))
    centroids_ND = np.stack(centroids)
    for _ in range(iterations):
        nearest_M = (rows_MD @ centroids_ND.T).argmax(axis=1)
        moved_ND = centroids_ND.copy()
        for j in np.unique(nearest_M):  # an empty cluster keeps its place
            moved_ND[j] = _unit(rows_MD[nearest_M == j].mean(axis=0))
        if np.allclose(moved_ND, centroids_ND, atol=1e-6):
            break
        centroids_ND = moved_ND
    return centroids_ND


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
