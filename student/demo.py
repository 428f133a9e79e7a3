"""A page to try a student in the browser: drop an image, compare before and after, see which prompts it chose.

    python -m student.demo
    python -m student.demo --model DIR_OR_HUB_ID --host 0.0.0.0 --port 8080

Images stay on this machine: no share link is made, nothing is sent, and the private temporary folder with them is
removed at the end. Needs the extra `demo`: gradio.
"""

import argparse
import glob
import html
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST = "200mb"
"""A larger file is refused by the page before it is read."""
EXAMPLES = "artifacts/samples/*/val/lq/*.png"
CAN = (
    "For noise, rain, haze and thin cloud, JPEG artefacts and images that were enlarged: photographs, satellite images "
    "and medical slices. A clean image should come back as it was; where it does not, lower the strength."
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m student.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="DIR|ID", help="default: the student that comes along, student/mini")
    parser.add_argument("--release", default="artifacts/caption_shards", metavar="DIR", help="captions to explain with")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    private = tempfile.TemporaryDirectory(prefix="teachonce-demo-")  # readable by its owner alone, gone at the end
    os.environ["GRADIO_TEMP_DIR"] = private.name
    from student.restoration.restorer import RestoreError

    try:
        import gradio
    except ImportError as error:
        print(f"demo: needs gradio ({error}): pip install 'teachonce[demo]'", file=sys.stderr)
        return 1
    try:
        page = build(gradio, args.model, args.release, args.device)
        where = {"server_name": args.host, "server_port": args.port}
        page.launch(**where, quiet=True, prevent_thread_lock=True, max_file_size=MOST, footer_links=[])
    except (RestoreError, OSError) as error:
        # gradio's own words advise a variable and an argument of a function that this command does not show
        taken = f"port {args.port} is in use on {args.host}; choose another with --port"
        print(f"demo: {taken if 'empty port' in str(error) else error}", file=sys.stderr)
        return 1
    print(f"demo: open http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        private.cleanup()
    return 0


class Demo:
    """What the page does with an image; knows nothing of gradio."""

    def __init__(self, model: str | None, release: str, device: str):
        from student.restoration.explain import Explainer
        from student.restoration.restorer import SHIPPED, Restorer, load_student

        student = load_student(model)
        self.restorer = Restorer(student, device)
        self.explainer = Explainer(student, release, str(model or SHIPPED))

    def restore(self, path: str, strength: float = 1.0, folder: str | None = None) -> tuple[tuple[Any, Any], str, str]:
        """An image file → (before, after) uint8 [H, W, 3], turned upright; what to say about it, as HTML; and the
        restored file, of the kind that it was, in a new folder (below `folder`)."""
        import numpy as np

        from student.images.files import read_picture
        from student.images.medical import own_suffix
        from student.images.picture import read_file, upright
        from student.images.workers import READ_SECONDS, ImageWorkers, try_to_read

        data = read_file(path)
        with ImageWorkers(1, READ_SECONDS) as worker:
            try_to_read(worker, data, path)
        picture = read_picture(data, path, own_suffix(data, path, ""))
        restored = np.empty_like(picture.rgb)
        begun = time.perf_counter()
        for i, rgb in enumerate(picture.rgb):
            result = self.restorer(rgb.transpose(2, 0, 1))
            restored[i] = rgb + strength * (result.image.transpose(1, 2, 0) - rgb)
            if i == len(picture.rgb) // 2:
                prompts, tiles = result.prompts, result.tiles  # of a medical volume, its middle slice is shown
        seconds = time.perf_counter() - begun
        out = Path(tempfile.mkdtemp(dir=folder), f"restored-{Path(path).name}")
        out.write_bytes(picture.encode(restored))
        shown = (upright(x[len(x) // 2], picture.orientation) for x in (picture.rgb, restored))
        before, after = (np.round(x * 255).astype(np.uint8) for x in shown)
        height, width = before.shape[:2]
        pieces = "whole" if tiles == 1 else f"in {tiles} tiles"
        timing = f"<b>{width} × {height}</b> pixels, {pieces}, <b>{seconds:.2f} s</b> on {self.restorer.device}"
        parts = [timing, *map(html.escape, picture.notes), *self._about(prompts)]
        return (before, after), "".join(f"<p>{part}</p>" for part in parts), str(out)

    def _about(self, prompts: Any) -> list[str]:
        about, parts = self.explainer.explain(prompts), []
        for pool in ("task", "domain"):
            if pool in about:
                chosen = ", ".join(f"#{p['prompt']} ({p['weight']:.0%})" for p in about[pool]["chosen"])
                told = f"<b>{pool.capitalize()} prompts</b>, of {about[pool]['pool_size']}: {chosen}"
                if like := about[pool].get("like"):
                    words = (f"{html.escape(name.replace('_', ' '))} {share:.0%}" for name, share in like.items())
                    told = f"<b>{pool.capitalize()}</b>: like {', '.join([*words][:3])}<br><small>{told}</small>"
                parts.append(told)
        if nearest := about.get("nearest_captions"):
            # Texts of strangers: as HTML or Markdown they could load a picture from anywhere.
            rows = [
                f"{row['similarity']:.2f}: {html.escape(' '.join(row['captions'].values()))}" for row in nearest[:3]
            ]
            parts.append("<b>Nearest training captions</b><br>" + "<br>".join(rows))
        elif missing := about.get("captions_missing"):
            parts.append(f"<small>No captions: {html.escape(missing)}</small>")
        return parts


def build(gradio: Any, model: str | None, release: str, device: str = "auto") -> Any:
    """The page as `gradio.Blocks`; raises `RestoreError` when the model cannot be loaded."""
    from student.images.formats import STILLS
    from student.images.picture import ImageFileError
    from student.restoration.restorer import RestoreError

    demo = Demo(model, release, device)

    def on_file(path: str | None, strength: float) -> tuple[Any, str, Any]:
        if path is None:
            return None, "", gradio.DownloadButton(visible=False)
        try:
            pictures, words, file = demo.restore(path, strength, os.environ.get("GRADIO_TEMP_DIR"))
        except (ImageFileError, RestoreError, OSError, MemoryError) as error:
            reason = html.escape(str(error) or type(error).__name__)
            return None, f"<p><b>Not restored:</b> {reason}</p>", gradio.DownloadButton(visible=False)
        return pictures, words, gradio.DownloadButton(value=file, visible=True)

    kinds = ", ".join([*dict.fromkeys(STILLS.values()), "DICOM", "NIfTI"])
    examples = [min(files) for files in _by_folder(glob.glob(EXAMPLES))]
    labels = [Path(file).parts[-4].replace("_", " ") for file in examples]  # DATA_SET/val/lq/000.png
    with gradio.Blocks(title="teachonce", analytics_enabled=False, fill_width=True) as page:
        gradio.Markdown(
            f"## Restore an image\n{CAN}\n\nModel: `{model or 'student/mini, shipped'}`. Up to {MOST.upper()}: {kinds}."
        )
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(label="Drop an image", type="filepath", height=140)
                strength = gradio.Slider(0, 1, 1, step=0.05, label="Strength")
                if examples:
                    gradio.Examples([[x] for x in examples], file, label="Or take one of these", example_labels=labels)
                download = gradio.DownloadButton("Download, as the kind of file it was", visible=False)
                words = gradio.HTML()
            with gradio.Column(scale=3):
                slider = gradio.ImageSlider(label="before | after", interactive=False, height=640, format="png")
        gradio.on([file.change, strength.release], on_file, [file, strength], [slider, words, download])
    return page


def _by_folder(files: list[str]) -> list[list[str]]:
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(os.path.dirname(file), []).append(file)
    return [folders[name] for name in sorted(folders)]


if __name__ == "__main__":
    sys.exit(main())
