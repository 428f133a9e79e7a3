"""Embed stage: captions of the store → vectors → a sealed, verified release that other projects reuse.

Vectors are cached per image beside the release, so adding one image embeds one image. Images without a usable caption
get no row and are counted.
"""

import argparse
import errno
import json
import os
import time
from collections.abc import Mapping
from functools import partial

from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.store import StoreError
from pipeline.cluster import add_ray_argument, over_ranges, refuse_ranks
from pipeline.embedding.audit import audit, warnings
from pipeline.embedding.rows import EmbedError, Tally, stats
from pipeline.embedding.run import EmbedActor, Embedding, public_name
from pipeline.indexing.table import IndexUnusable, aliases_of
from pipeline.params import Params, load_all
from pipeline.stopping import Stop, Stopped
from shards import ReleaseError, open_release, write_release
from shards.verify import verify
from student.params import ParamsError, add_params_arguments
from student.places import write_whole
from student.progress import progress

EXAMPLES = """examples:
  python -m pipeline.embed                                             after python -m pipeline.caption
  python -m pipeline.embed --set embed.model=openai/clip-vit-large-patch14 --set embed.pooling=concat
  python -m pipeline.embed --ray                                       on all GPUs of this machine (extra ray)
then, anywhere numpy and pyarrow are installed:
  python -m shards info artifacts/caption_shards
"""


def teacher_identity(config: CaptionConfig, identities: Mapping[str, Mapping]) -> dict:
    """The teacher in the manifest: what the perspectives have in common, and their questions."""
    common = dict(next(iter(identities.values())))
    del common["perspective"], common["prompt"]
    return {"name": public_name(config.model), **common, "perspectives": dict(sorted(config.perspectives.items()))}


def embed(args: argparse.Namespace) -> str:
    """The stage; returns the summary line. Raises `EmbedError` and the errors of params, index, store and model."""
    started = time.perf_counter()
    refuse_ranks()
    params = load_all(args.params, args.overrides)
    config, paths = params.embed, params.paths
    work = Embedding(params)
    n_new = embed_on_ray(args.ray, params, work) if args.ray else 0
    stop, tally = Stop(), Tally()
    try:
        with progress("embedding", work.n_images) as advance:
            n_here, truncated = work.fill(work.blocks(tally, advance=advance), stop)
    except Stopped:
        raise EmbedError(f"stopped by {stop.signal.name}: what was embedded is kept; run again to resume") from None
    finally:
        stop.restore()
    n_new, errors, most = n_new + n_here, tally.without_row["error"], params.caption.max_error_fraction
    if errors > most * tally.images:  # as the stage before: a student of half of the captions is another student
        remedy = "python -m pipeline.caption --retry-errors tries them again"
        raise EmbedError(
            f"{errors} of {tally.images} images have no caption but an error, more than {most:g}; {remedy}"
        )
    roots = (params.index.root, params.index.extracted) if params.index else ()
    with progress("writing the release", tally.images) as advance:
        manifest = write_release(
            paths.release,
            work.release_tables(advance),
            (aliases_of(block.rows, *roots) for block in work.index.blocks()),
            teacher=teacher_identity(params.caption, work.identities),
            embedder=work.identity,
            fingerprints=work.fingerprints,
            teacher_fingerprint=work.teacher_fingerprint,
            dim=work.dim,
            apart=work.apart,
            extra_stats={"cut_by_embedder": {name: truncated[name] for name in sorted(work.stores)}},
            part_bytes=config.part_mb << 20,
        )
    if problems := verify(paths.release):
        raise EmbedError(f"{paths.release} does not verify: {problems[0]} ({len(problems)} problems); check the disk")
    summary = stats(tally, params.caption.perspectives, manifest["rows"], work.dim, work.fingerprints, truncated)
    looked = audit(open_release(paths.release), work.index, params.caption.perspectives)
    summary["audit"] = looked
    write_whole(paths.caption_stats, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    left_out = sum(tally.without_row.values())
    doubts = "".join(f"\n  warning: {doubt}" for doubt in warnings(looked))
    return (
        f"embed: {n_new} new of {tally.images} images, {manifest['rows']} rows of dim {work.dim} in {paths.release}, "
        f"verified; {left_out} without a caption left out, {truncated.total()} captions cut by the embedder, "
        f"{time.perf_counter() - started:.1f} s{doubts}"
    )


def embed_on_ray(address: str, params: Params, work: Embedding) -> int:
    """Embed what lacks on a cluster; returns the images embedded."""
    lacking = [(block.low, block.high, len(work.lacking(block)[0])) for block in work.blocks(Tally())]
    tasks = [task for task in lacking if task[2]]
    n_new = 0
    if tasks:
        with progress("embedding", sum(n for *_, n in tasks)) as advance:
            n_new = sum(over_ranges(address, partial(EmbedActor, params), tasks, advance, EmbedError))
        work.open_cache()
    return n_new


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
    add_ray_argument(parser)
    args = parser.parse_args(argv)
    try:
        print(embed(args))
    except (ParamsError, IndexUnusable, StoreError, EmbedError, ReleaseError, OSError, ValueError) as error:
        full = "; the disk is full: free some space and run it again" * (getattr(error, "errno", None) == errno.ENOSPC)
        raise SystemExit(f"embed: {error}{full}") from None


if __name__ == "__main__":
    main()
