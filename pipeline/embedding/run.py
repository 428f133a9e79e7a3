"""Captions to vectors, block by block: what the cache lacks is embedded, and the release's rows stream out of it."""

import ctypes
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioning.store import open_stores
from pipeline.embedding.cache import EmbeddingCache
from pipeline.embedding.config import EmbedConfig
from pipeline.embedding.rows import CaptionBlock, EmbedError, Tally, caption_blocks, pool, release_table
from pipeline.indexing.table import Index
from pipeline.params import Params
from pipeline.stopping import NeverStopped
from student.places import join
from teacher.embedder import embedder_identity
from teacher.identity import caption_identities
from teacher.identity import fingerprint as fingerprint_of

BLOCK = 4096
"""Images whose captions are in memory together."""
POOLED = 64
"""Images whose vectors are pooled together, in float64: so few stay in the cache of a core, three times as fast."""


class Embedding:
    """What the stage works with: index, captions, cached vectors, and the embedder once it is needed."""

    def __init__(self, params: Params):
        self.config = params.embed
        self.index = Index(params.paths.index)
        self.identities = caption_identities(**params.caption.identity)
        self.stores = open_stores(params.paths.caption_store, self.identities)
        self.fingerprints = {name: store.fingerprint for name, store in self.stores.items()}
        config, names = self.config, sorted(self.stores)
        self.apart = names if config.keep_apart else []
        embedder = embedder_identity(config.model, revision=config.revision)
        self.dim = embedder["dim"] * (len(names) if config.pooling == "concat" else 1)
        embedder |= {"pooling_of_perspectives": config.pooling, "keep_apart": config.keep_apart}
        self.teacher_fingerprint = fingerprint_of(self.fingerprints)
        self.fingerprint = fingerprint_of({"teacher": self.teacher_fingerprint, "embedder": embedder})
        self.identity = {"name": public_name(config.model), **embedder, "fingerprint": self.fingerprint}
        self._cache_root = join(os.path.dirname(params.paths.release.rstrip("/")), "embedding_cache")
        self.open_cache()
        self._embedder = None

    def open_cache(self) -> None:
        """Look anew what is there."""
        self.cache = EmbeddingCache(self._cache_root, self.fingerprint, 1 + len(self.apart), self.dim)

    @cached_property
    def ranges(self) -> list[tuple[str, str, int]]:
        """`low, high, images` of every block."""
        return list(self.index.ranges(BLOCK))

    @property
    def n_images(self) -> int:
        """Distinct images of the index."""
        return sum(images for *_, images in self.ranges)

    def blocks(self, tally: Tally, ranges=None, advance: Callable[[int], None] = lambda n: None) -> Iterator:
        """The captions of all images, or of `ranges` (`caption_blocks`)."""
        need_all, labelled = self.config.keep_apart or self.config.pooling == "concat", self.config.pooling == "label"
        ranges = self.ranges if ranges is None else ranges
        return caption_blocks(self.index, self.stores, need_all, labelled, tally, ranges, advance)

    def lacking(self, block: CaptionBlock) -> tuple[np.ndarray, Counter]:
        """The numbers of images whose vectors the cache lacks; of the others, captions that were cut by perspective."""
        held = self.cache.find(block.images, block.digests, vectors=False)
        return np.flatnonzero(~held.found), Counter(name for names in held.truncated.values() for name in names)

    def fill(self, blocks: Iterable[CaptionBlock], stop) -> tuple[int, Counter]:
        """Embed what the cache lacks, block by block; returns the images embedded, and captions cut by perspective."""
        n_new, truncated = 0, Counter[str]()
        for block in blocks:
            missing, cut = self.lacking(block)
            truncated += cut
            if len(missing):
                texts = block.texts
                if len(missing) < len(block):
                    texts = {name: of_name.take(missing) for name, of_name in texts.items()}
                with stop.interruptible():
                    self._embedder = self._embedder or load_embedder(self.config)
                    cut_of, vectors = embed_images(texts, self._embedder, self.config.pooling, self.apart)
                images = block.images.take(pa.array(missing)).to_pylist()
                self.cache.append(images, [block.digests[image] for image in missing], cut_of, vectors)
                truncated.update(name for names in cut_of for name in names)
                n_new += len(missing)
        _hand_back_memory()
        return n_new, truncated

    def release_tables(self, advance: Callable[[int], None]) -> Iterator[pa.Table]:
        """Rows for `shards.write_release`, by sha256."""
        for block in self.blocks(Tally(), advance=advance):
            held = self.cache.find(block.images, block.digests)
            if not held.found.all():
                lost = block.images[int(np.argmin(held.found))].as_py()
                raise EmbedError(f"the vector of image {lost} is no longer in {self.cache.directory}: run it again")
            yield release_table(block, held.vectors, self.apart)


class EmbedActor:
    """On a cluster (`pipeline.cluster`): embeds what the cache lacks of ranges of hashes; answers how many."""

    def __init__(self, params: Params):
        self.params, self._embedder = params, None

    def __call__(self, ranges: list[tuple[str, str]]) -> int:
        work = Embedding(self.params)  # opened anew: another actor may have done a part of it before it died
        work._embedder = self._embedder
        n_new, _ = work.fill(work.blocks(Tally(), ranges), NeverStopped())
        self._embedder = work._embedder
        return n_new


def embed_images(
    said: dict[str, pa.Array], embedder, pooling: str, apart: list[str]
) -> tuple[list[list[str]], np.ndarray]:
    """Perspective (in order of the names) -> texts of n images, null where there is none.

    Returns of each image the perspectives that were cut, and vectors float16 `[n, columns, dim]`. Each text is encoded
    once.
    """
    names, columns = list(said), list(said.values())
    if pooling == "joined":  # a cut counts for every perspective in the text
        joined = pc.binary_join_element_wise(*columns, " ", null_handling="skip")
        columns = [pc.if_else(column.is_valid(), joined, None) for column in columns]
    coded = pa.chunked_array([c for column in columns for c in _chunks(column)]).combine_chunks().dictionary_encode()
    order = pc.sort_indices(coded.dictionary)
    vectors, _, truncated = embedder.encode(coded.dictionary.take(order).to_pylist())
    # [images, perspectives]: the number of the text, -1 for none
    number = np.append(np.argsort(order), -1)[pc.fill_null(coded.indices, -1)].reshape(len(names), -1).T
    cut = np.append(truncated, False)[number]
    cut_of = [[names[place] for place in np.flatnonzero(row)] for row in cut] if cut.any() else [[]] * len(number)
    pooled: Any = None
    held = number >= 0
    for has in held[:1] if held.all() else np.unique(held, axis=0):
        images = np.flatnonzero((held == has).all(axis=1))
        for some in np.split(images, range(POOLED, len(images), POOLED)):
            of_names = {names[place]: vectors[number[some, place]] for place in np.flatnonzero(has)}
            made = pool(of_names, pooling, apart)
            pooled = np.empty((len(number), *made.shape[1:]), np.float16) if pooled is None else pooled
            pooled[some] = made
    return cut_of, pooled


def _hand_back_memory() -> None:
    """What is free, to the system: texts and vectors leave 100 MB that the release, of other sizes, cannot use."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries than glibc have none
        trim(0)


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def load_embedder(config: EmbedConfig):
    """The text encoder; raises `EmbedError`."""
    from teacher.embedder import Embedder

    try:
        return Embedder(config.model, revision=config.revision, device=config.device, batch_size=config.batch_size)
    except Exception as error:  # a broken checkpoint raises anything: OSError, KeyError, SafetensorError, ...
        reason = str(error).splitlines()[0] if str(error) else ""
        raise EmbedError(
            f"embed.model = {config.model!r} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def public_name(model: str) -> str:
    """Where a directory lies on this machine is nobody's business, and would change the bytes of the release."""
    return Path(model).name if Path(model).is_absolute() else model
