"""Image files keep what they are: depth, gray, alpha, profile, orientation; and tell clearly what they cannot be."""

import io
import struct

import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pydicom.data import get_testdata_file

from student import deep_png
from student.image_files import ImageFileError, read_picture, read_rgb

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def file_of(samples, kind, **options) -> bytes:
    out = io.BytesIO()
    (samples if isinstance(samples, Image.Image) else Image.fromarray(samples)).save(out, kind, **options)
    return out.getvalue()


def tiff_of(samples, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, samples, **options)
    return out.getvalue()


def tags_of(data: bytes):
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return file.pages.first.tags


def again(data, name="", suffix=""):
    """The file as it comes back when nothing is restored."""
    picture = read_picture(data, name, suffix)
    assert picture.rgb.dtype == np.float32 and 0 <= picture.rgb.min() and picture.rgb.max() <= 1
    return picture.encode(picture.rgb)


def samples(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def dicom_of(**changes) -> bytes:
    scan, out = pydicom.dcmread(get_testdata_file("CT_small.dcm")), io.BytesIO()
    for name, value in changes.items():
        setattr(scan, name, value)
    scan.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_8_bits_come_back_exactly(kind, channels):
    pixels = samples(9, 13, *channels)
    options = {"lossless": True} if kind == "WEBP" else {}
    out = Image.open(io.BytesIO(again(file_of(pixels, kind, **options))))
    assert out.format == kind
    got = np.asarray(out)
    assert np.array_equal(got[..., 0] if kind == "WEBP" and channels == () else got, pixels)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1, 3), (3, 500)])
def test_16_bit_png_keeps_every_bit(shape):
    pixels = samples(*shape, dtype=np.uint16)
    still = type("Still", (), {"metadata": {"icc_profile": SRGB, "dpi": (300, 300)}})
    data = deep_png.write(pixels.reshape(*shape[:2], -1), still)
    assert np.array_equal(deep_png.read(data).reshape(shape), pixels)
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == SRGB, "and Pillow reads it too"
    returned = again(data)
    assert np.array_equal(deep_png.read(returned).reshape(shape), pixels)
    assert Image.open(io.BytesIO(returned)).info["icc_profile"] == SRGB
    assert Image.open(io.BytesIO(returned)).info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_16_bit_png_of_pillow_is_read_alike():
    pixels = samples(6, 11, dtype=np.uint16)
    assert np.array_equal(deep_png.read(file_of(pixels, "PNG"))[..., 0], pixels)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff_keeps_every_bit(shape, compression):
    pixels = samples(*shape, dtype=np.uint16)
    options = {"photometric": "minisblack" if len(shape) == 2 else "rgb", "compression": compression}
    out = again(tiff_of(pixels, iccprofile=SRGB, **options))
    assert np.array_equal(tifffile.imread(io.BytesIO(out)), pixels)
    assert tags_of(out)[34675].value == SRGB


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_geotiff_stays_where_it_is(dtype):
    pixels, point = samples(6, 5, 3, dtype=dtype), (0.0, 0.0, 0.0, 444720.0, 3751320.0, 0.0)
    keys = (1, 1, 0, 1, 1024, 0, 1, 1)
    extra = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, point, True), (34735, 3, 8, keys, True)]
    extra += [(42113, 2, 5, "-9999", True)]
    data = tiff_of(pixels, photometric="rgb", extratags=extra, description="Landsat", metadata=None)
    tags = tags_of(again(data))
    assert np.array_equal(tifffile.imread(io.BytesIO(again(data))), pixels)
    assert tags[33922].value == point and tags[34735].value == keys and tags[42113].value == "-9999"
    assert tags[33550].value == (10.0, 10.0, 0.0) and tags[270].value == "Landsat"
    with pytest.raises(ImageFileError, match="holds no georeference; name the output .tif"):
        read_picture(data, "x.tif", ".png")


def test_a_turned_tiff_is_upright_again():
    pixels = samples(4, 7, 3, dtype=np.uint16)
    turned = tiff_of(pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    out = again(turned)
    assert tags_of(out)[274].value == 6 and np.array_equal(tifffile.imread(io.BytesIO(out)), pixels)
    out = Image.open(
        io.BytesIO(again(tiff_of((pixels >> 8).astype(np.uint8), photometric="rgb", extratags=[(274, 3, 1, 6, True)])))
    )
    assert out.size == (4, 7) and out.getexif().get(274, 1) == 1, "8 bits: the pixels themselves are turned"


def test_a_transparent_colour_of_a_16_bit_png_becomes_alpha():
    pixels = samples(5, 6, 3, dtype=np.uint16)
    pixels[2, 3] = 1, 2, 3
    plain = deep_png.write(pixels, type("S", (), {"metadata": {}}))
    at = plain.index(b"IDAT") - 4
    data = plain[:at] + deep_png._chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3])) + plain[at:]
    out = deep_png.read(again(data))
    assert np.array_equal(out[..., :3], pixels)
    assert out[2, 3, 3] == 0 and (out[..., 3] == 65535).sum() == 29


def test_a_lossless_webp_with_a_profile_stays_lossless():
    pixels = samples(9, 13, 3)
    out = Image.open(io.BytesIO(again(file_of(pixels, "WEBP", lossless=True, icc_profile=SRGB))))
    assert np.array_equal(np.asarray(out), pixels) and out.info["icc_profile"] == SRGB


def test_more_pixels_than_memory_are_refused_before_they_are_decoded(monkeypatch):
    png = file_of(samples(4, 4, 3), "PNG")
    header = struct.pack(">II", 400_000, 400_000) + png[24:29]
    bomb = png[:8] + deep_png._chunk(b"IHDR", header) + png[33:]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # Pillow's own
    with pytest.raises(ImageFileError, match="more than 179 megapixels"):
        read_picture(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as student.restore sets it
    with pytest.raises(ImageFileError, match="400000x400000 pixels take 5120.0 GB, and .* GB are free"):
        read_picture(bomb)


def test_a_float_tiff_keeps_its_range():
    pixels = RNG.normal(1000, 300, (9, 12)).astype(np.float32)
    out = tifffile.imread(io.BytesIO(again(tiff_of(pixels))))
    assert out.dtype == np.float32 and np.allclose(out, pixels, atol=1e-3)


def test_alpha_orientation_profile_and_resolution_survive():
    rgba = samples(8, 8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(rgba), "PNG", icc_profile=SRGB, exif=exif.tobytes(), dpi=(72, 72))
    out = Image.open(io.BytesIO(again(data)))
    assert np.array_equal(np.asarray(out), rgba)
    assert out.getexif()[0x0112] == 6 and out.info["icc_profile"] == SRGB
    jpeg = Image.open(io.BytesIO(again(file_of(samples(16, 24, 3), "JPEG", exif=exif.tobytes(), icc_profile=SRGB))))
    assert jpeg.size == (24, 16) and jpeg.getexif()[0x0112] == 6 and jpeg.info["icc_profile"] == SRGB


def test_gray_jpeg_stays_gray_and_cmyk_becomes_rgb():
    gray = file_of(np.full((16, 16), 90, np.uint8), "JPEG")
    assert Image.open(io.BytesIO(again(gray))).mode == "L"
    cmyk = file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    out = Image.open(io.BytesIO(again(cmyk)))
    red, green, blue = out.getpixel((8, 8))
    assert out.mode == "RGB" and red > 240 and green < 20 and blue < 20


def test_palette_and_one_bit_pictures_are_read():
    palette = Image.fromarray(samples(8, 8, 3)).quantize(16)
    assert np.array_equal(
        read_rgb(file_of(palette, "PNG")).transpose(1, 2, 0) * 255, np.asarray(palette.convert("RGB"))
    )
    assert Image.open(io.BytesIO(again(file_of(Image.new("1", (8, 8), 1), "PNG")))).mode == "L"


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["", "x.png", "x.dcm", "x.nii", "x.nii.gz"]))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_a_picture_or_one_reason(data, name):
    for content in (data, b"\x89PNG\r\n\x1a\n" + data, file_of(np.zeros((4, 4), np.uint8), "PNG")[: len(data)]):
        with pytest.raises(ImageFileError) as error:
            read_picture(content, name)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "suffix", "message"),
    [
        (b"", "", "empty file"),
        (file_of(samples(40, 40, 3), "PNG")[:-400], "", "cannot be decoded"),
        (deep_png.write(samples(9, 9, 3, dtype=np.uint16), type("S", (), {"metadata": {}}))[:-30], "", "truncated"),
        (file_of(samples(4, 4), "GIF"), "", "GIF is not supported"),
        (tiff_of(samples(3, 9, 9, 3)), "", "3 frames or pages"),
        (dicom_of(PhotometricInterpretation="PALETTE COLOR"), "", "a colour DICOM file .PALETTE COLOR."),
        (dicom_of(BitsAllocated=1), "", "not an image but a mask"),
        (file_of(samples(4, 4, 4), "PNG"), ".jpg", "no transparency"),
        (file_of(samples(4, 4, dtype=np.uint16), "PNG"), ".jpg", "name the output .png or .tif"),
        (tiff_of(RNG.normal(size=(4, 4)).astype(np.float32)), ".png", "name the output .tif"),
        (file_of(samples(4, 4), "PNG"), ".jp2", "cannot write .jp2"),
    ],
)
def test_what_cannot_be_done_says_what_can(data, suffix, message):
    with pytest.raises(ImageFileError, match=message):
        read_picture(data, "x", suffix)
