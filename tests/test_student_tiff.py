"""TIFF files keep their type of sample, their bands, their gaps and their tags, or say why they cannot."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
import tifffile
from picture_files import RNG, SRGB, again, file_of, opened, pixels_of, samples, tags_of, tiff_of
from PIL import Image

from student.images import png16 as deep_png
from student.images.files import read_picture, read_rgb
from student.images.picture import ImageFileError

TYPES = [np.uint8, np.uint16, np.int8, np.int16, np.uint32, np.int32, np.float16, np.float32, np.float64]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff_keeps_every_bit(shape, compression):
    pixels = samples(*shape, dtype=np.uint16)
    options = {"photometric": "minisblack" if len(shape) == 2 else "rgb", "compression": compression}
    out = again(tiff_of(pixels, iccprofile=SRGB, **options))
    assert np.array_equal(pixels_of(out), pixels)
    assert tags_of(out)[34675].value == SRGB


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_geotiff_stays_where_it_is(dtype):
    pixels, point = samples(6, 5, 3, dtype=dtype), (0.0, 0.0, 0.0, 444720.0, 3751320.0, 0.0)
    keys = (1, 1, 0, 1, 1024, 0, 1, 1)
    extra = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, point, True), (34735, 3, 8, keys, True)]
    extra += [(42113, 2, 5, "-9999", True)]
    data = tiff_of(pixels, photometric="rgb", extratags=extra, description="Landsat", metadata=None)
    tags = tags_of(again(data))
    assert np.array_equal(pixels_of(again(data)), pixels)
    assert tags[33922].value == point and tags[34735].value == keys and tags[42113].value == "-9999"
    assert tags[33550].value == (10.0, 10.0, 0.0) and tags[270].value == "Landsat"
    with pytest.raises(ImageFileError, match="holds no georeference; name the output .tif"):
        read_picture(data, "x.tif", ".png")


def test_a_turned_tiff_is_upright_again():
    pixels = samples(4, 7, 3, dtype=np.uint16)
    turned = tiff_of(pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    out = again(turned)
    assert tags_of(out)[274].value == 6 and np.array_equal(pixels_of(out), pixels)
    out = Image.open(
        io.BytesIO(again(tiff_of((pixels >> 8).astype(np.uint8), photometric="rgb", extratags=[(274, 3, 1, 6, True)])))
    )
    assert out.size == (4, 7) and out.getexif().get(274, 1) == 1, "8 bits: the pixels themselves are turned"


def test_a_float_tiff_keeps_its_range():
    pixels = RNG.normal(1000, 300, (9, 12)).astype(np.float32)
    out = pixels_of(again(tiff_of(pixels)))
    assert out.dtype == np.float32 and np.allclose(out, pixels, atol=1e-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("bands", "photometric", "extra"),
    [(1, 1, ()), (3, 2, ()), (2, 1, (0,)), (2, 1, (2,)), (3, 1, (0, 0)), (4, 2, (0,)), (4, 2, (2,)), (4, 1, (0, 0, 0))],
)
def test_every_type_of_sample_and_meaning_of_bands_stays(dtype, bands, photometric, extra):
    floats = np.dtype(dtype).kind == "f"
    pixels = RNG.normal(300, 90, (5, 7, bands)).astype(dtype) if floats else samples(5, 7, bands, dtype=dtype)
    options = {"planarconfig": "contig", "extrasamples": extra or None} if bands > 1 else {}
    data = tiff_of(pixels if bands > 1 else pixels[..., 0], photometric=photometric, metadata=None, **options)
    out, tags = again(data), tags_of(again(data))
    got = pixels_of(out).reshape(pixels.shape)
    assert got.dtype == dtype
    colours = 3 if bands > 2 else 1
    tolerance = 2e-7 * np.ptp(pixels[..., :colours].astype(float)) if got.dtype.itemsize > 2 else 0.25 * floats
    assert np.allclose(got[..., :colours], pixels[..., :colours], rtol=0, atol=tolerance)
    assert np.array_equal(got[..., colours:], pixels[..., colours:]), "a band beside the colours is copied"
    assert tags[262].value == photometric and (tuple(tags[338].value) if extra else ()) == extra


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_premultiplied_alpha_stays_premultiplied(dtype):
    pixels = samples(5, 7, 4, dtype=np.uint16).astype(dtype)
    data = tiff_of(pixels, photometric="rgb", extrasamples=[1])
    assert np.allclose(pixels_of(again(data)), pixels, atol=0.01) and tags_of(again(data))[338].value == (1,)
    with pytest.raises(ImageFileError, match="PNG holds no .*; name the output .tif"):
        read_picture(data, "x.tif", ".png")


def test_planes_and_a_4th_band_that_no_tag_describes_are_read():
    pixels = samples(4, 5, 7)
    planes = tiff_of(pixels, photometric="rgb", planarconfig="separate", extrasamples=[0])
    assert np.array_equal(pixels_of(again(planes)), np.moveaxis(pixels, 0, -1))
    silent = tiff_of(np.moveaxis(pixels, 0, -1), photometric="rgb", extrasamples=[2], byteorder="<", metadata=None)
    entry = silent.index(b"\x52\x01\x03\0")  # tag 338, type SHORT
    silent = silent[:entry] + b"\x51\x01" + silent[entry + 2 :]  # becomes 337
    assert tags_of(again(silent))[338].value == (0,)
    assert np.array_equal(pixels_of(again(silent)), np.moveaxis(pixels, 0, -1))


@pytest.mark.parametrize(("dtype", "nodata"), [(np.float32, "-9999"), (np.int16, "-9999"), (np.float64, "nan")])
def test_no_data_is_neither_in_the_range_nor_changed(dtype, nodata):
    heights = RNG.uniform(301, 551, (9, 12)).astype(dtype)
    gap = np.zeros(heights.shape, bool)
    gap[2:4, 3:9] = True
    pixels = np.where(gap, np.dtype(dtype).type(float(nodata)), heights)
    data = tiff_of(pixels, extratags=[(42113, 2, 0, nodata, True)], metadata=None)
    picture = read_picture(data)
    seen = picture.rgb[0, ..., 0]
    assert seen[~gap].min() == 0 and seen[~gap].max() == 1
    assert np.allclose(seen[gap], seen[~gap].mean(), atol=0.01), "neutral for the network"
    out = pixels_of(picture.encode(1 - picture.rgb))
    assert np.array_equal(out[gap], pixels[gap], equal_nan=dtype == np.float64), "exactly as they were"
    mirrored = heights[~gap].min().astype(float) + heights[~gap].max() - heights[~gap]
    assert np.allclose(out[~gap], mirrored, atol=1e-3)
    assert tags_of(again(data))[42113].value == nodata


def test_no_data_of_8_bits_and_of_a_whole_picture_comes_back():
    tag = [(42113, 2, 0, "0", True)]
    edge = samples(6, 7, 3) | 1
    edge[:, :2] = 0
    picture = read_picture(tiff_of(edge, photometric="rgb", extratags=tag))
    out = pixels_of(picture.encode(np.clip(picture.rgb + 0.02, 0, 1)))
    assert (out[:, :2] == 0).all() and (out[:, 2:] > 0).all()
    for empty in (np.full((4, 5), np.nan, np.float32), np.zeros((4, 5), np.float32)):
        assert np.array_equal(pixels_of(again(tiff_of(empty, extratags=tag))), empty, equal_nan=True)


def test_overviews_and_masks_are_no_pages(tmp_path):
    for dtype in (np.uint8, np.uint16):
        pixels = samples(32, 48, 3, dtype=dtype)
        with tifffile.TiffWriter(tmp_path / "cog.tif") as file:
            file.write(pixels, photometric="rgb", metadata=None)
            file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
            file.write(pixels[..., 0] > 9, subfiletype=4, metadata=None)
        assert np.array_equal(pixels_of(again((tmp_path / "cog.tif").read_bytes())), pixels)
        with tifffile.TiffWriter(tmp_path / "raw.tif") as file:  # some cameras write the small one first
            file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
            file.write(pixels, photometric="rgb", metadata=None)
        assert np.array_equal(pixels_of(again((tmp_path / "raw.tif").read_bytes())), pixels)


def test_a_photograph_becomes_a_tiff_without_pointers_into_what_is_not_there():
    exif = Image.Exif()
    exif[271], exif[315], exif[274] = "Olympus", "Zo??", 8
    exif.get_ifd(34665)[33434] = 0.01
    exif.get_ifd(34853)[1] = "N"
    block = exif.tobytes().replace(b"Zo??", "Zoë".encode())
    for kind in ("JPEG", "WEBP"):
        data = file_of(samples(16, 24, 3), kind, exif=block, icc_profile=SRGB, dpi=(300, 300))
        data = again(data, "x", ".tif")
        tags = tags_of(data)
        assert (
            tags[271].value == "Olympus"
            and tags[315].value == "Zoë"
            and tags[274].value == 8
            and tags[34675].value == SRGB
        )
        assert 34665 not in tags and 34853 not in tags
        assert tags_of(again(data))[315].value == "Zoë" and opened(data).size == (16, 24), "turned"
    assert opened(again(file_of(samples(4, 4), "TIFF", dpi=(300, 300)))).info["dpi"] == (300, 300)


def test_a_turned_16_bit_tiff_is_upright_as_a_png_too():
    pixels = samples(4, 7, 3, dtype=np.uint16)
    options = {"resolution": (118, 118), "resolutionunit": "centimeter", "iccprofile": SRGB}
    turned = tiff_of(pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)], **options)
    png = again(turned, "x.tif", ".png")
    info = opened(png).info
    assert np.array_equal(deep_png.read(png), pixels) and opened(png).getexif()[274] == 6
    assert info["icc_profile"] == SRGB and info["dpi"] == pytest.approx((299.7, 299.7), abs=0.1)


@pytest.mark.parametrize(
    ("data", "suffix", "message"),
    [
        (
            tiff_of(np.zeros((5, 6, 9), np.float32), photometric=1, planarconfig="contig"),
            "",
            "9 bands: .* --bands 4 3 2",
        ),
        (tiff_of(np.zeros((5, 6), np.complex64)), "", "samples of type complex64 .*; convert it to 32-bit float"),
        (tiff_of(np.zeros((5, 6), np.int64)), "", "samples of type int64"),
        (tiff_of(samples(5, 6), photometric=32803), "", "a TIFF of a kind that is not supported; convert it to RGB"),
        (tiff_of(samples(5, 6, 4), photometric="rgb", extrasamples=[0]), ".png", "PNG holds no .*name the output .tif"),
        (tiff_of(samples(5, 6, dtype=np.int16)), ".png", "PNG holds no int16 samples; name the output .tif"),
    ],
)
def test_what_a_tiff_cannot_be_says_what_it_can(data, suffix, message):
    with pytest.raises(ImageFileError, match=message):
        read_picture(data, "x.tif", suffix)


def test_a_colour_is_no_gap_where_one_of_its_bands_is_zero():
    pixels = np.full((6, 8, 3), (255, 0, 0), np.uint8)
    pixels[:, 4:] = 0
    data = tiff_of(pixels, photometric="rgb", extratags=[(42113, 2, 0, "0", True)], metadata=None)
    rgb = read_picture(data).rgb[0]
    assert np.array_equal(rgb[:, :4], np.full((6, 4, 3), (1, 0, 0), np.float32)), "red is a colour"
    assert rgb[:, 4:].min() > 0, "black without data is hidden from the network"
    assert np.array_equal(pixels_of(again(data)), pixels)


def test_nothing_is_made_up_for_a_training_target():
    pixels = np.zeros((6, 8, 3), np.uint8)
    tag = [(42113, 2, 0, "0", True)]
    assert not read_rgb(tiff_of(pixels, photometric="rgb", extratags=tag, metadata=None)).any()
    with pytest.raises(ImageFileError, match="not finite"):
        read_rgb(tiff_of(np.full((4, 5), np.nan, np.float32)))


@pytest.mark.parametrize("big", [False, True])
def test_directories_that_never_end_are_no_picture(big):
    data = bytearray(tiff_of(samples(5, 6), bigtiff=big, byteorder="<"))
    count, offset, entry = ("<Q", "<Q", 20) if big else ("<H", "<I", 12)
    (first,) = struct.unpack_from(offset, data, 8 if big else 4)
    (held,) = struct.unpack_from(count, data, first)
    struct.pack_into(offset, data, first + struct.calcsize(count) + entry * held, first)
    with pytest.raises(ImageFileError, match="lead in a circle"):
        read_picture(bytes(data))


def test_strips_that_unpack_to_more_than_they_hold_take_no_memory():
    bomb = zlib.compress(bytes(2**28), 9)
    data = bytearray(tiff_of(np.zeros((64, 64), np.uint16), compression="zlib", byteorder="<", metadata=None))
    (first,) = struct.unpack_from("<I", data, 4)
    for at in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], 12):
        if (code := struct.unpack_from("<H", data, at)[0]) in (273, 279):
            struct.pack_into("<I", data, at + 8, len(data) if code == 273 else len(bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_picture(bytes(data) + bomb)
    except ImageFileError:
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
