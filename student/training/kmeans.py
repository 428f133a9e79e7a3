"""k-means on the unit sphere, for `model.domain_init: kmeans`."""

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2


def kmeans(embeddings_MD: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` unit centroids [count, D] of unit rows [M, D]; the same result for the same seed.

    With fewer distinct rows than `count`, the remaining centroids are small perturbations of existing ones, since equal
    prompts would stay equal for ever. Raises ValueError without rows.
    """
    rows_MD = np.asarray(embeddings_MD, dtype=np.float32)
    if rows_MD.ndim != 2 or len(rows_MD) == 0:
        raise ValueError(f"k-means needs at least one embedding row, got an array of shape {list(rows_MD.shape)}")
    random, rows_MD = np.random.default_rng(seed), _unit(rows_MD)
    distinct = len(np.unique(rows_MD.round(6), axis=0))
    with warnings.catch_warnings(action="ignore"):  # an empty cluster keeps its place
        centroids_ND = _unit(kmeans2(rows_MD, min(count, distinct), iter=50, minit="++", seed=random)[0])
    near_XD = centroids_ND[random.integers(len(centroids_ND), size=count - len(centroids_ND))]
    moved_XD = near_XD + 0.1 * _unit(random.standard_normal(near_XD.shape, dtype=np.float32))
    return np.concatenate([centroids_ND, _unit(moved_XD)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
