"""What follows the teacher in `python -m pipeline.caption FOLDER OUT`: the table and the page of N captioned images.

A synthetic release (five captions of about 90 letters, vectors of 384 numbers); with --browser the page is opened in
Chromium, searched, and asked for neighbours.
"""

import argparse
import hashlib
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.captioning.folder import _files, _texts, _write_table
from pipeline.captioning.gallery import write_gallery
from shards import open_release, write_release

FLAGS = ["--no-sandbox", "--enable-precise-memory-info"]
NAMES = ["brightness", "colour", "content", "texture", "viewpoint"]


def make_release(folder: Path, count: int) -> None:
    rng, words = np.random.default_rng(0), [f"word{i}" for i in range(3000)]
    shas = sorted(hashlib.sha256(str(i).encode()).hexdigest() for i in range(count))

    def rows():
        for sha256 in shas:
            said = [" ".join(words[i] for i in rng.integers(0, len(words), 12)) for _ in NAMES]
            captions = [
                {"perspective": name, "text": text, "n_tokens": 20, "finish_reason": "stop"}
                for name, text in zip(NAMES, said, strict=True)
            ]
            yield {
                "image_sha256": sha256,
                "width": 9,
                "height": 9,
                "captions": captions,
                "embedding": rng.normal(size=384),
            }

    aliases = [(f"album {i % 97}/IMG_{i}.jpg", "folder", "images", sha256) for i, sha256 in enumerate(shas)]
    prints = dict.fromkeys(NAMES, "0" * 64)
    teacher = {"perspectives": dict.fromkeys(NAMES, "?")}
    about = {"teacher": teacher, "embedder": {}, "fingerprints": prints, "teacher_fingerprint": "0" * 64}
    write_release(folder, rows(), aliases, dim=384, **about)


def look(page: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        tab, start = browser.new_page(), time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_function("document.querySelectorAll('article').length >= 60")
        first = time.perf_counter() - start
        tab.wait_for_function("images.length == DATA.images", timeout=120_000)
        loaded = time.perf_counter() - start
        heap = tab.evaluate("performance.memory.usedJSHeapSize") / 1e6
        timed = "const t = performance.now(); %s; return performance.now() - t;"
        search = "(word) => { words.value = word; " + timed % "words.oninput()" + " }"
        took = [tab.evaluate(search, word) for word in ("w", "word12", "word17 word2999")]
        near = tab.evaluate("() => { " + timed % "near = 0; show()" + " }")
        print(f"browser: first pictures after {first:.1f} s, all loaded after {loaded:.1f} s")
        print(f"heap {heap:.0f} MB, search {max(took):.0f} ms at most, neighbours {near:.0f} ms")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--browser", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        child = os.fork()  # so that its memory is not counted below
        if not child:
            make_release(out / "release", args.images)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        start, cpu = time.perf_counter(), time.process_time()
        release = open_release(out / "release")
        texts, files = _texts(release, NAMES), _files(release)
        _write_table(out / "captions.csv", NAMES, texts, files)
        table = time.perf_counter() - start
        write_gallery(out, f"{place}/photos", release, NAMES, texts, files)
        size = sum(file.stat().st_size for file in (out / "page").iterdir()) / 1e6
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"{args.images} images: captions.csv {table:.1f} s, with the page {time.perf_counter() - start:.1f} s "
            f"({time.process_time() - cpu:.1f} CPU s), memory {before:.0f} → {most:.0f} MB, page data {size:.0f} MB"
        )
        if args.browser:
            look(out / "index.html")


if __name__ == "__main__":
    main()
