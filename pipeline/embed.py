"""Embed stage: captions of the store → vectors → a sealed, verified release that other projects reuse.

Vectors are cached per image beside the release, so adding one image embeds one image. Images without a usable caption
get no row and are counted.
"""

import argparse
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.store import StoreError, open_stores
from pipeline.embedding.cache import EmbeddingCache
from pipeline.embedding.config import EmbedConfig
from pipeline.embedding.rows import EmbedError, ImageCaptions, Tally, caption_ranges, pool, release_row, stats
from pipeline.indexing.table import IndexUnusable, aliases_of, images_of, labels_of, read_index, sizes_of
from pipeline.params import load_all
from pipeline.processes import device_of_process, process_of_many, wait_for_all
from pipeline.stopping import Stop, Stopped
from shards import ReleaseError, write_release
from shards.verify import verify
from student.files import write_file
from student.params import ParamsError, add_params_arguments
from student.progress import progress
from teacher.embedder import embedder_identity
from teacher.identity import caption_identities
from teacher.identity import fingerprint as fingerprint_of

EXAMPLES = """examples:
  python -m pipeline.embed                                             after python -m pipeline.caption
  python -m pipeline.embed --set embed.model=openai/clip-vit-large-patch14 --set embed.pooling=concat
  accelerate launch --num_processes 4 -m pipeline.embed                four GPUs
then, anywhere numpy and pyarrow are installed:
  python -m shards info artifacts/caption_shards
"""


def embed_missing(ranges: Iterator, cache: EmbeddingCache, config: EmbedConfig, apart: list[str], stop: Stop) -> int:
    """Embed the captions that `cache` lacks (of several processes: this one's share); returns the images embedded.

    Works and keeps what it made by ranges of image hashes, so that memory does not grow with the data set.
    """
    rank, world_size = process_of_many()
    embedder, n_new = None, 0
    for _, _, images in ranges:
        missing = [
            image
            for image in images
            if not cache.holds(image.sha256, image.digest) and int(image.sha256[:8], 16) % world_size == rank
        ]
        if missing:
            with stop.interruptible():
                embedder = embedder or load_embedder(config)
                rows = embed_images(missing, embedder, config.pooling, apart)
            cache.append(rows)
            n_new += len(missing)
    return n_new


def embed_images(images: list[ImageCaptions], embedder, pooling: str, apart: list[str]) -> dict:
    """image_sha256 -> (digest, truncated perspectives, vectors float16 `[columns, dim]`); each text is encoded once."""
    said = {image.sha256: image.texts for image in images}
    if pooling == "joined":  # a cut counts for every perspective in the text
        joined = {sha256: " ".join(of_image[name] for name in sorted(of_image)) for sha256, of_image in said.items()}
        said = {sha256: dict.fromkeys(of_image, joined[sha256]) for sha256, of_image in said.items()}
    texts = sorted({text for of_image in said.values() for text in of_image.values()})
    vectors, _, truncated = embedder.encode(texts)
    place = {text: number for number, text in enumerate(texts)}
    rows = {}
    for image in images:
        places = {name: place[text] for name, text in said[image.sha256].items()}
        pooled = pool({name: vectors[number] for name, number in places.items()}, pooling, apart)
        rows[image.sha256] = (image.digest, [name for name in sorted(places) if truncated[places[name]]], pooled)
    return rows


def load_embedder(config: EmbedConfig):
    """The text encoder; raises `EmbedError`."""
    from teacher.embedder import Embedder

    try:
        device = device_of_process(config.device)
        return Embedder(config.model, revision=config.revision, device=device, batch_size=config.batch_size)
    except Exception as error:  # a broken checkpoint raises anything: OSError, KeyError, SafetensorError, ...
        reason = str(error).splitlines()[0] if str(error) else ""
        raise EmbedError(
            f"embed.model = {config.model!r} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def release_rows(ranges: Iterator, cache: EmbeddingCache, sizes: Mapping, apart: list[str]) -> Iterator[dict]:
    """Rows for `shards.write_release`, by sha256."""
    for low, high, images in ranges:
        vectors = cache.vectors(low, high)
        for image in images:
            yield release_row(image, sizes[image.sha256], vectors[image.sha256], apart)


def public_name(model: str) -> str:
    """Where a directory lies on this machine is nobody's business, and would change the bytes of the release."""
    return Path(model).name if Path(model).is_absolute() else model


def teacher_identity(config: CaptionConfig, identities: Mapping[str, Mapping]) -> dict:
    """The teacher in the manifest: what the perspectives have in common, and their questions."""
    common = dict(next(iter(identities.values())))
    del common["perspective"], common["prompt"]
    return {"name": public_name(config.model), **common, "perspectives": dict(sorted(config.perspectives.items()))}


def embed(args: argparse.Namespace) -> str:
    """The stage; returns the summary line. Raises `EmbedError` and the errors of params, index, store and model."""
    started = time.perf_counter()
    params = load_all(args.params, args.overrides)
    config, paths = params.embed, params.paths
    index = read_index(paths.index)
    images = images_of(index)
    identities = caption_identities(**params.caption.identity)
    stores = open_stores(Path(paths.caption_store), identities)
    fingerprints = {name: store.fingerprint for name, store in stores.items()}
    embedder = embedder_identity(config.model, revision=config.revision)
    apart = sorted(stores) if config.keep_apart else []
    labels = labels_of(index) if config.pooling == "label" else {}
    dim = embedder["dim"] * (len(stores) if config.pooling == "concat" else 1)
    embedder |= {"pooling_of_perspectives": config.pooling, "keep_apart": config.keep_apart}
    teacher_fingerprint = fingerprint_of(fingerprints)
    fingerprint = fingerprint_of({"teacher": teacher_fingerprint, "embedder": embedder})
    cache_root = Path(paths.release).with_name("embedding_cache")
    cache = EmbeddingCache(cache_root, fingerprint, 1 + len(apart), dim)

    def ranges(tally: Tally, advance: Callable[[int], None] = lambda n: None) -> Iterator:
        need_all = config.keep_apart or config.pooling == "concat"
        return caption_ranges(images, stores, need_all, tally, advance, labels)

    (rank, world_size), stop, tally = process_of_many(), Stop(), Tally()
    try:
        with progress("embedding", len(images), rank=rank) as advance:
            n_new = embed_missing(ranges(tally, advance), cache, config, apart, stop)
    except Stopped:
        raise EmbedError(f"stopped by {stop.signal.name}: what was embedded is kept; run again to go on") from None
    finally:
        stop.restore()
    errors, most = tally.without_row["error"], params.caption.max_error_fraction
    if errors > most * len(images):  # as the stage before: a student of half of the captions is another student
        remedy = "python -m pipeline.caption --retry-errors tries them again"
        raise EmbedError(f"{errors} of {len(images)} images have no caption but an error, more than {most:g}; {remedy}")
    if world_size > 1:
        wait_for_all()
        if rank:
            return f"embed: {n_new} new (process {rank} of {world_size}); the first process writes the release"
        cache = EmbeddingCache(cache_root, fingerprint, 1 + len(apart), dim)  # with the vectors of the others
    truncated = cache.truncated(images)
    with progress("writing the release", len(images)) as advance:
        manifest = write_release(
            paths.release,
            release_rows(ranges(Tally(), advance), cache, sizes_of(index), apart),
            aliases_of(index, *((params.index.root, params.index.extracted) if params.index else ())),
            teacher=teacher_identity(params.caption, identities),
            embedder={"name": public_name(config.model), **embedder, "fingerprint": fingerprint},
            fingerprints=fingerprints,
            teacher_fingerprint=teacher_fingerprint,
            dim=dim,
            apart=apart,
            extra_stats={"cut_by_embedder": {name: truncated[name] for name in sorted(stores)}},
            part_bytes=config.part_mb << 20,
        )
    if problems := verify(paths.release):
        raise EmbedError(f"{paths.release} does not verify: {problems[0]} ({len(problems)} problems); check the disk")
    summary = stats(tally, params.caption.perspectives, manifest["rows"], dim, fingerprints, truncated)
    write_file(Path(paths.caption_stats), json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")
    left_out = sum(tally.without_row.values())
    return (
        f"embed: {n_new} new of {len(images)} images, {manifest['rows']} rows of dim {dim} in {paths.release}, "
        f"verified; {left_out} without a caption left out, {truncated.total()} captions cut by the embedder, "
        f"{time.perf_counter() - started:.1f} s"
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m pipeline.embed`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # docs/decisions.md, before torch is imported
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.embed",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_params_arguments(parser)
    args = parser.parse_args(argv)
    try:
        print(embed(args))
    except (ParamsError, IndexUnusable, StoreError, EmbedError, ReleaseError, OSError, ValueError) as error:
        full = "; the disk is full: free some space and run it again" * (getattr(error, "errno", None) == errno.ENOSPC)
        raise SystemExit(f"embed: {error}{full}") from None


if __name__ == "__main__":
    main()
