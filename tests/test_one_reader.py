"""One verdict and the same pixels for every file, in the index, for captions and in training; one range for a pair."""

import hashlib
import os
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hostile_images import make_hostile_images, png_claiming
from picture_files import file_of, samples, tiff_of
from PIL import Image

from pipeline.captioning.decode import decode as decode_for_captions
from pipeline.index import index_rows
from pipeline.indexing.config import IndexConfig
from pipeline.indexing.probe import probe
from pipeline.indexing.probe_cache import ProbeCache
from pipeline.indexing.writer import write_index
from student.data.cache import as_float, decode, open_images
from student.data.dataset import PairDataset
from student.data.pairs import TrainDataError, read_pairs
from student.images.files import read_8_bit
from student.images.formats import is_image_name
from student.images.picture import ImageFileError

RNG = np.random.default_rng(0)
SCALE = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.0001</Item></GDALMetadata>'
PHOTO = Image.fromarray(np.kron(RNG.integers(0, 256, (6, 9, 3)), np.ones((8, 8, 1))).astype(np.uint8))


def odd_files() -> dict[str, bytes]:
    """Files that stages used to disagree on; names that begin with "bad" are to be refused by all."""
    gray, frames = np.asarray(PHOTO.convert("L")), {"save_all": True, "append_images": [PHOTO.rotate(180)]}
    deep, turned = gray.astype(np.uint16) * 257, Image.Exif()
    turned[274] = 6
    rgba = np.dstack([np.asarray(PHOTO), gray])
    nan = np.where(gray > 99, gray / 255, np.nan).astype(np.float32)
    return {
        "one.ppm": file_of(PHOTO, "PPM"),
        "gray.pgm": file_of(PHOTO.convert("L"), "PPM"),
        "deep.pgm": b"P5 # a comment\n72 48 4095\n" + (deep >> 4).astype(">u2").tobytes(),
        "deep.ppm": b"P6 72 48 65535\n" + np.repeat(deep[..., None], 3, -1).astype(">u2").tobytes(),
        "pages.tif": file_of(PHOTO, "TIFF", **frames),
        "pages_deep.tif": tiff_of(np.stack([deep, deep[::-1]]), photometric="minisblack"),
        "animated.webp": file_of(PHOTO, "WEBP", lossless=True, **frames),
        "animated.png": file_of(PHOTO, "PNG", **frames),
        "animated.gif": file_of(PHOTO.quantize(64), "GIF", **frames),
        "stereo.jpg": file_of(PHOTO, "MPO", **frames),
        "photo.avif": file_of(PHOTO, "AVIF"),
        "photo.jp2": file_of(PHOTO, "JPEG2000"),
        "deep.jp2": imagecodecs.jpeg2k_encode(np.asarray(PHOTO).astype(np.uint16) * 16, level=0, bitspersample=12),
        "deep.avif": imagecodecs.avif_encode(np.asarray(PHOTO).astype(np.uint16) * 4, level=100, bitspersample=10),
        "letters.ppm": b"P3 72 48 510 " + b" ".join(b"%d" % (2 * x) for x in np.asarray(PHOTO, int).ravel()),
        "lerc.tif": tiff_of(np.asarray(PHOTO), photometric="rgb", compression="lerc"),
        "scaled.tif": tiff_of(gray.astype(np.int16) * 39, extratags=[(42112, 2, 0, SCALE, True)], metadata=None),
        "opaque_255.tif": tiff_of(rgba.astype(np.uint16), photometric="rgb", extrasamples=[2]),
        "filled.tif": tiff_of(np.where(gray > 200, 65535, gray * 9).astype(np.uint16)),
        "a_jp2_too.png": file_of(PHOTO, "JPEG2000"),
        "photo.jfif": file_of(PHOTO, "JPEG", exif=turned),
        "turned.tif": file_of(PHOTO, "TIFF", exif=turned),
        "turned_deep.tif": tiff_of(deep, extratags=[(274, 3, 1, 6, True)]),
        "turned.png": file_of(PHOTO, "PNG", exif=turned),
        "cmyk.jpg": file_of(PHOTO.convert("CMYK"), "JPEG"),
        "clear.png": file_of(rgba, "PNG"),
        "clear_deep.tif": tiff_of(rgba.astype(np.uint16) * 257, photometric="rgb", extrasamples=[2]),
        "clear.bmp": file_of(rgba, "BMP"),
        "deep.png": file_of(deep, "PNG"),
        "twelve.png": file_of(deep >> 4, "PNG"),
        "float64.tif": tiff_of(gray * 1e-3),
        "float_rgb.tif": tiff_of(np.asarray(PHOTO, np.float32) / 255, photometric="rgb"),
        "signed.tif": tiff_of(gray.astype(np.int16) - 100),
        "negative.tif": tiff_of(deep, photometric="miniswhite"),
        "fill.tif": tiff_of(np.where(gray > 200, -9999, gray * 0.1).astype(np.float32)),
        "bad_nan.tif": tiff_of(nan),
        "bad_pages.gif": b"GIF89a" + bytes(40),
        "bad_eps.png": file_of(PHOTO, "EPS"),
        "bad_bands.tif": tiff_of(samples(7, 9, 13), photometric="minisblack", planarconfig="contig"),
    }


def test_every_stage_gives_one_verdict_and_the_same_pixels(tmp_path):
    make_hostile_images(tmp_path)
    for name, data in odd_files().items():
        (tmp_path / name).write_bytes(data)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        found = probe(str(path), 10**8)
        _, status, shown = decode_for_captions(
            hashlib.sha256(data).hexdigest(), [str(path)], 10**8, lambda image: image
        )
        if path.name.startswith("bad"):
            assert found.error and status == "bad_image", path.name
            with pytest.raises(TrainDataError):
                decode(str(path))
            continue
        assert (found.error, status) == (None, "ok"), (path.name, found.error, shown)
        trained = as_float(decode(str(path))).transpose(1, 2, 0)
        assert shown.size == (found.width, found.height) == trained.shape[1::-1], path.name
        assert np.array_equal(np.asarray(shown), np.round(trained * 255)), path.name


def test_odd_files_show_the_photograph_upright(tmp_path):
    upright, files = np.asarray(PHOTO, float), odd_files()
    for name in (
        "one.ppm",
        "animated.webp",
        "animated.png",
        "pages.tif",
        "photo.jp2",
        "a_jp2_too.png",
        "float_rgb.tif",
        "letters.ppm",
        "lerc.tif",
    ):
        assert np.abs(np.asarray(read_8_bit(files[name])) - upright).max() <= 1, name
    for name in ("turned.tif", "turned.png"):
        assert np.array_equal(np.asarray(read_8_bit(files[name])), np.rot90(upright, -1)), name
    gray = np.asarray(PHOTO.convert("L"), float)
    for name in ("gray.pgm", "deep.pgm", "deep.ppm", "deep.png", "twelve.png", "pages_deep.tif"):
        assert np.abs(np.asarray(read_8_bit(files[name]))[..., 0] - gray).max() <= 1, name
    assert np.abs(np.asarray(read_8_bit(files["negative.tif"]))[..., 0] - (255 - gray)).max() <= 1
    over_white = Image.alpha_composite(Image.new("RGBA", PHOTO.size, "white"), Image.open(as_path(tmp_path, files)))
    for name in ("clear.png", "clear_deep.tif"):
        assert np.abs(np.asarray(read_8_bit(files[name]), float) - np.asarray(over_white.convert("RGB"))).max() <= 1


def as_path(folder: Path, files: dict[str, bytes]) -> Path:
    (folder / "clear.png").write_bytes(files["clear.png"])
    return folder / "clear.png"


def indexed(folder: Path, **more) -> PairDataset:
    """The pairs below `folder`/gt and /lq by the real index."""
    split = {"gt": "gt", "lq": "lq"}
    spec = {"name": "d", "domain": "natural", "task": "denoising", "splits": {"train": split}, **more}
    config = IndexConfig(root=str(folder), datasets=[spec])
    rows = (row for row, _ in index_rows(config, ProbeCache(folder / "cache.sqlite")))
    assert write_index(rows, folder / "index.parquet", lambda: True)
    pairs = read_pairs(folder / "index.parquet", "train")
    assert len(pairs), "nothing usable"
    images = open_images("memory", pairs, "")
    fresh, kept = PairDataset(pairs, None, 8, 0), PairDataset(pairs, None, 8, 0, images=images)
    assert all(np.array_equal(*both) for both in zip(fresh.whole_image(0), kept.whole_image(0), strict=True))
    return fresh


def save_pair(folder: Path, name: str, gt: bytes, lq: bytes, lq_name: str = "") -> None:
    for side, data, file in (("gt", gt, name), ("lq", lq, lq_name or name)):
        (folder / side).mkdir(exist_ok=True)
        (folder / side / file).write_bytes(data)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_gt_lies_on_its_upright_lq(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    seen = PHOTO.rotate(180) if orientation == 3 else PHOTO.rotate(-90, expand=True)
    save_pair(
        tmp_path, "a.jpg", file_of(PHOTO, "JPEG", quality=100, subsampling=0, exif=exif), file_of(seen, "PNG"), "a.png"
    )
    lq, gt = indexed(tmp_path).whole_image(0)
    assert np.abs(lq - gt).mean() < 0.02


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint16])
def test_a_pair_has_one_range(tmp_path, dtype):
    gt = RNG.uniform(500, 3000, (40, 50)).astype(dtype)
    lq = gt.copy()
    lq[7, 9] = 30000  # all that differs
    save_pair(tmp_path, "a.tif", tiff_of(gt), tiff_of(lq))
    seen_lq, seen_gt = indexed(tmp_path).whole_image(0)
    assert seen_gt.std() > 0.1 and (seen_lq != seen_gt).sum() == 3, "one pixel of three colours"


def test_a_dark_input_is_not_stretched_to_its_gt(tmp_path):
    """Low light in 16 bits, in floats, and an input of 8 bits beside a gt of 12."""
    for folder, top, dtype in (("a", 60000, np.uint16), ("b", 1, np.float32), ("c", 4000, np.uint16)):
        gt = np.linspace(0, top, 600).reshape(20, 30).astype(dtype)
        lq = np.round(gt / 4095 * 25).astype(np.uint8) if folder == "c" else (gt / 10).astype(dtype)
        (tmp_path / folder).mkdir()
        save_pair(tmp_path / folder, "a.tif", tiff_of(gt), tiff_of(lq))
        seen_lq, seen_gt = indexed(tmp_path / folder).whole_image(0)
        assert np.allclose(seen_lq * 10, seen_gt, atol=0.05), folder


def test_a_data_set_names_its_range(tmp_path):
    gt = np.full((9, 9, 3), 2500, np.uint16)
    save_pair(tmp_path, "a.tif", tiff_of(gt, photometric="rgb"), tiff_of(gt * 2, photometric="rgb"))
    lq, gt = indexed(tmp_path, range=[0, 10000]).whole_image(0)
    assert np.allclose(gt, 0.25) and np.allclose(lq, 0.5)
    with pytest.raises(ValueError, match="give LOW and a larger HIGH"):
        indexed(tmp_path, range=[5, 5])


def test_pipes_are_no_files_and_limits_are_one(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    assert not is_image_name(tmp_path / "pipe"), "which would have to be opened, and waits for ever"
    assert "no file but a pipe or device" in probe(str(tmp_path / "pipe.png"), 100).error
    for pixels in (png_claiming(6_000, 6_000), tiff_of(np.zeros((600, 600), np.float32))):
        with pytest.raises(ImageFileError, match="00 has more than 1000 pixels"):
            read_8_bit(pixels, max_pixels=1000)


def test_16_bit_numbers_that_use_all_are_taken_as_they_are():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.abs(np.asarray(read_8_bit(file_of(ramp, "PNG")))[..., 0].ravel() - np.arange(256.0)).max() <= 1
    dark = np.full((4, 4), 1000, np.uint16)
    assert read_8_bit(file_of(dark, "PNG")).getpixel((0, 0)) == (62, 62, 62), "of 4095"
    assert read_8_bit(tiff_of(dark, extratags=[(281, 3, 1, 2000, True)])).getpixel((0, 0)) == (128,) * 3, "by its tag"


def test_a_float_photograph_is_taken_as_one():
    for top in (1.0, 255.0):
        ramp = np.linspace(0, top, 256).astype(np.float32).reshape(16, 16)
        shown = np.asarray(read_8_bit(tiff_of(ramp)))[..., 0]
        assert np.abs(shown.ravel() - np.arange(256.0)).max() <= 1
