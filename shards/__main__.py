"""`python -m shards`: look at, check, join, compare and export caption releases."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from shards import combine, export
from shards.reader import open_release
from shards.schema import ReleaseError
from shards.verify import verify

_EXAMPLES = """examples:
  python -m shards info artifacts/caption_shards
  python -m shards verify artifacts/caption_shards
  python -m shards copy s3://bucket/captions captions
  python -m shards merge ours theirs both
  python -m shards diff old new
  python -m shards export artifacts/caption_shards captions.csv --format csv --domain remote_sensing
  python -m shards gc artifacts/caption_store --keep artifacts/caption_shards --yes

exit codes: 0 fine; 1 problems found (verify) or differences (diff); 2 the command could not be carried out
"""


def say(text: str = "", file=None) -> None:
    """Print a line without control characters: names, captions and manifests are written by strangers."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    encoding = (file or sys.stdout).encoding or "utf-8"
    print(shown.encode(encoding, "replace").decode(encoding), file=file)


class Progress:
    """Rows and their rate on stderr, drawn only for a person (shards has no dependency to draw it)."""

    def __init__(self, what: str, of: str = "rows") -> None:
        self.what, self.of, self.start, self.drawn = what, of, time.monotonic(), 0.0

    def __call__(self, rows: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now - self.drawn > 0.2:
            self.drawn = now
            rate = rows / max(now - self.start, 1e-9)
            print(f"\r{self.what}: {rows:,} {self.of}, {rate:,.0f}/s\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> float:
        """Clear the line; returns the seconds that passed."""
        if self.drawn:
            print("\r\x1b[K", end="", file=sys.stderr)
        return time.monotonic() - self.start


def info(args: argparse.Namespace) -> int:
    manifest = open_release(args.release).manifest
    if args.json:
        print(json.dumps(manifest, indent=1, sort_keys=True))  # ASCII: exact, and no control characters
        return 0
    size = sum(entry["bytes"] for entry in [*manifest["parts"], *manifest["files"]])
    say(f"{args.release}: caption release, format {manifest['format_version']}, by {manifest['created_by']}")
    say(f"  {manifest['rows']:,} images, {manifest['aliases']:,} files of data sets, {size / 1e6:,.1f} MB")
    say(f"  embedding     {manifest['dim']} × float16, fingerprint {manifest['embedding_fingerprint'][:16]}")
    say(f"  teacher       fingerprint {manifest['teacher_fingerprint'][:16]}")
    for who in ("teacher", "embedder"):
        say(f"  {who:13} {json.dumps(manifest[who], sort_keys=True, ensure_ascii=False)}")
    for name, s in manifest["stats"]["captions"].items():
        cut = s["finish_reasons"].get("length", 0)
        lengths = f"{s['tokens_mean']} tokens (95 %: {s['tokens_p95']}, max {s['tokens_max']})"
        say(f"  {name:13} {s['n']:,} captions, {lengths}, {cut:,} cut, {s['vocabulary']:,} words")
    for s in manifest["stats"]["sources"]:
        say(f"  {s['domain']}/{s['dataset']}: {s['images']:,} images, {s['files']:,} files")
    return 0


def check(args: argparse.Namespace) -> int:
    progress = Progress("verifying")
    problems = verify(args.release, progress)
    seconds = progress.close()
    for problem in problems:
        say(problem)
    verdict = f"{len(problems)} problems; pull or write it again" if problems else "sound"
    say(f"{args.release}: {verdict} ({seconds:.1f} s)")
    return 1 if problems else 0


def copy(args: argparse.Namespace) -> int:
    progress = Progress("copying", "bytes")
    manifest = combine.copy_release(args.release, args.out, progress)
    say(f"{args.out}: {manifest['rows']:,} images from {args.release} ({progress.close():.1f} s)")
    return 0


def merge(args: argparse.Namespace) -> int:
    progress = Progress("merging")
    manifest = combine.merge([args.a, args.b], args.out, progress)
    say(f"{args.out}: {manifest['rows']:,} images from {args.a} and {args.b} ({progress.close():.1f} s)")
    return 0


def diff(args: argparse.Namespace) -> int:
    found = combine.diff(args.a, args.b)
    if found["identity"]:
        say(f"differ in {', '.join(found['identity'])}")
    for kind, label in {
        "only_a": f"only in {args.a}",
        "only_b": f"only in {args.b}",
        "captions": "other captions",
        "embeddings": "other embeddings",
    }.items():
        for image in found["examples"].get(kind, []):
            say(f"  {image} {label}")
    say(
        f"{found['common']:,} images in both ({found['captions']:,} with other captions, {found['embeddings']:,} with "
        f"other embeddings), {found['only_a']:,} only in {args.a}, {found['only_b']:,} only in {args.b}"
    )
    same = not found["identity"] and not any(found[k] for k in ("only_a", "only_b", "captions", "embeddings"))
    return 0 if same else 1


def write_export(args: argparse.Namespace) -> int:
    release = open_release(args.release, strict=True)
    if args.dataset or args.domain:
        release = release.subset(args.dataset, args.domain)
    progress = Progress("exporting")
    export.export(release, args.out, args.format, progress)
    say(f"{args.out}: {len(release):,} images as {args.format} ({progress.close():.1f} s)")
    return 0


def gc(args: argparse.Namespace) -> int:
    found = combine.unnamed(args.store, args.keep)
    for entry in found:
        say(f"{entry.folder}: {entry.files} files, {entry.bytes / 1e6:,.1f} MB")
    if args.yes:
        combine.remove(found)
    done = "removed" if args.yes else "would be removed with --yes" if found else "to remove"
    say(f"{len(found)} fingerprints, {sum(entry.bytes for entry in found) / 1e6:,.1f} MB {done}")
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "python -m shards", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run, text: str, *places: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        for place in places:
            sub.add_argument(place)
        sub.set_defaults(run=run)
        return sub

    sub = verb("info", info, "print what a release holds and who made it", "release")
    sub.add_argument("--json", action="store_true", help="print the manifest instead")
    verb("verify", check, "check every byte, the order, the vectors and the index", "release")
    verb("copy", copy, "copy a release, also from or to s3://bucket/folder, every byte checked", "release", "out")
    verb("merge", merge, "write the union of two releases of one teacher", "a", "b", "out")
    verb("diff", diff, "compare two releases; exit code 1 if they differ", "a", "b")
    sub = verb("export", write_export, "write plain files", "release", "out")
    sub.add_argument("--format", choices=export.FORMATS, required=True)
    sub.add_argument("--dataset", action="append", help="only images of this data set (may be repeated)")
    sub.add_argument("--domain", action="append", help="only images of this domain (may be repeated)")
    sub = verb("gc", gc, "list the fingerprints of a caption store that nothing names", "store")
    sub.add_argument("--keep", action="append", required=True, metavar="RELEASE_OR_FINGERPRINT", help="may be repeated")
    sub.add_argument("--yes", action="store_true", help="remove them")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except ReleaseError as error:
        say(f"error: {error}", file=sys.stderr)
    except OSError as error:
        say(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
