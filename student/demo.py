"""A page to try a student in the browser: drop an image, compare before and after, see which prompts it chose.

    python -m student.demo
    python -m student.demo --model DIR_OR_HUB_ID --host 0.0.0.0 --port 8080

Images stay on this machine: no share link is made and no statistics are sent. Needs the extra `demo`: gradio.
"""

import argparse
import os
import sys
import time
from typing import Any

CSS = ".gradio-container {max-width: 1120px !important; margin: auto} footer {display: none !important}"


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
    from student.restoration.restorer import RestoreError

    try:
        import gradio
    except ImportError as error:
        print(f"demo: needs gradio ({error}): pip install 'teachonce[demo]'", file=sys.stderr)
        return 1
    try:
        page = build(gradio, args.model, args.release, args.device)
        page.launch(server_name=args.host, server_port=args.port, css=CSS, quiet=True, prevent_thread_lock=True)
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
    return 0


class Demo:
    """What the page does with an image; knows nothing of gradio."""

    def __init__(self, model: str | None, release: str, device: str):
        from student.restoration.explain import Explainer
        from student.restoration.restorer import Restorer, load_student

        student = load_student(model)
        self.restorer = Restorer(student, device)
        self.explainer = Explainer(student, release)

    def restore(self, path: str) -> tuple[tuple[Any, Any], str]:
        """An image file → (before, after) uint8 [H, W, 3], turned upright, and what to say about it in Markdown."""
        import numpy as np

        from student.images.files import read_picture
        from student.images.picture import read_file, upright

        picture = read_picture(read_file(path), path)
        rgb = picture.rgb
        rgb = rgb[len(rgb) // 2]  # of a medical volume, its middle slice
        begun = time.perf_counter()
        result = self.restorer(rgb.transpose(2, 0, 1))
        seconds = time.perf_counter() - begun
        shown = (upright(x, picture.orientation) for x in (rgb, result.image.transpose(1, 2, 0)))
        before, after = (np.round(x * 255).astype(np.uint8) for x in shown)
        height, width = before.shape[:2]
        pieces = "whole" if result.tiles == 1 else f"in {result.tiles} tiles"
        timing = f"**{width} × {height}** pixels, {pieces}, **{seconds:.2f} s** on {self.restorer.device}"
        return (before, after), "\n\n".join([timing, *picture.notes, *self._about(result.prompts)])

    def _about(self, prompts: Any) -> list[str]:
        about, parts = self.explainer.explain(prompts), []
        for pool in ("task", "domain"):
            if pool in about:
                chosen = ", ".join(f"#{p['prompt']} ({p['weight']:.0%})" for p in about[pool]["chosen"])
                parts.append(f"**{pool.capitalize()} prompts**, of {about[pool]['pool_size']}: {chosen}")
        if nearest := about.get("nearest_captions"):
            lines = [f"- {row['similarity']:.2f}: {' '.join(row['captions'].values())}" for row in nearest[:3]]
            parts.append("**Nearest training captions**\n" + "\n".join(lines))
        return parts


def build(gradio: Any, model: str | None, release: str, device: str = "auto") -> Any:
    """The page as `gradio.Blocks`; raises `RestoreError` when the model cannot be loaded."""
    from student.images.formats import STILLS
    from student.images.picture import ImageFileError
    from student.restoration.restorer import RestoreError

    demo = Demo(model, release, device)

    def on_file(path: str | None) -> tuple[Any, str]:
        if path is None:
            return None, ""
        try:
            return demo.restore(path)
        except (ImageFileError, RestoreError) as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title="teachonce", analytics_enabled=False) as page:
        gradio.Markdown(
            f"## Restore an image\nModel `{model or 'student/mini, shipped'}`. Drop a file; drag the line to compare."
        )
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(
                    label=", ".join([*dict.fromkeys(STILLS.values()), "DICOM", "NIfTI"]), type="filepath", height=140
                )
                words = gradio.Markdown()
            with gradio.Column(scale=2):
                slider = gradio.ImageSlider(label="before | after", interactive=False, height=520, format="png")
        file.change(on_file, file, [slider, words])
    return page


if __name__ == "__main__":
    sys.exit(main())
