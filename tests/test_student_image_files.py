"""Image files keep what they are: depth, gray, alpha, profile, orientation; and tell clearly what they cannot be."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import RNG, SRGB, again, file_of, opened, samples, tiff_of
from PIL import Image, ImageCms

from student.images import png16 as deep_png
from student.images.files import read_picture, read_rgb
from student.images.picture import ImageFileError


def gamma_one() -> bytes:
    """The sRGB profile with its tone curve replaced by a straight line, which makes its colours linear."""
    with_curve = bytearray(SRGB)
    for at in range(128, len(SRGB) - 16):
        if SRGB[at : at + 4] == b"para":
            with_curve[at : at + 16] = b"para" + bytes(8) + struct.pack(">I", 65536)
    return bytes(with_curve)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_8_bits_come_back_exactly(kind, channels):
    pixels = samples(9, 13, *channels)
    options = {"lossless": True} if kind == "WEBP" else {}
    out = opened(again(file_of(pixels, kind, **options)))
    assert out.format == kind
    got = np.asarray(out)
    assert np.array_equal(got[..., 0] if kind == "WEBP" and channels == () else got, pixels)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1, 3), (3, 500)])
def test_16_bit_png_keeps_every_bit(shape):
    pixels = samples(*shape, dtype=np.uint16)
    still = type("Still", (), {"metadata": {"icc_profile": SRGB, "dpi": (300, 300)}})
    data = deep_png.write(pixels.reshape(*shape[:2], -1), still)
    assert np.array_equal(deep_png.read(data).reshape(shape), pixels)
    assert opened(data).info["icc_profile"] == SRGB, "and Pillow reads it too"
    returned = again(data)
    assert np.array_equal(deep_png.read(returned).reshape(shape), pixels)
    assert opened(returned).info["icc_profile"] == SRGB
    assert opened(returned).info["dpi"] == pytest.approx((300, 300), abs=0.1)


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
    out = opened(again(file_of(pixels, "WEBP", lossless=True, icc_profile=SRGB)))
    assert np.array_equal(np.asarray(out), pixels) and out.info["icc_profile"] == SRGB


def test_more_pixels_than_memory_are_refused_before_they_are_decoded():
    png = file_of(samples(4, 4, 3), "PNG")
    header = struct.pack(">II", 400_000, 400_000) + png[24:29]
    bomb = png[:8] + deep_png._chunk(b"IHDR", header) + png[33:]
    with pytest.raises(ImageFileError, match="400000x400000 pixels take 5120.0 GB, and .* GB are free"):
        read_picture(bomb)


def test_alpha_orientation_profile_and_resolution_survive():
    rgba = samples(8, 8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(rgba), "PNG", icc_profile=SRGB, exif=exif.tobytes(), dpi=(72, 72))
    out = opened(again(data))
    assert np.array_equal(np.asarray(out), rgba)
    assert out.getexif()[0x0112] == 6 and out.info["icc_profile"] == SRGB
    jpeg = opened(again(file_of(samples(16, 24, 3), "JPEG", exif=exif.tobytes(), icc_profile=SRGB)))
    assert jpeg.size == (24, 16) and jpeg.getexif()[0x0112] == 6 and jpeg.info["icc_profile"] == SRGB


def test_gray_jpeg_stays_gray_and_cmyk_becomes_rgb():
    gray = file_of(np.full((16, 16), 90, np.uint8), "JPEG")
    assert opened(again(gray)).mode == "L"
    cmyk = file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    out = opened(again(cmyk))
    red, green, blue = out.getpixel((8, 8))
    assert out.mode == "RGB" and red > 240 and green < 20 and blue < 20


def test_palette_and_one_bit_pictures_are_read():
    palette = Image.fromarray(samples(8, 8, 3)).quantize(16)
    assert np.array_equal(
        read_rgb(file_of(palette, "PNG")).transpose(1, 2, 0) * 255, np.asarray(palette.convert("RGB"))
    )
    assert opened(again(file_of(Image.new("1", (8, 8), 1), "PNG"))).mode == "L"


def test_bmp_holds_neither_profile_nor_orientation_so_the_pixels_take_them_in():
    pixels, exif = samples(4, 7, 3), Image.Exif()
    exif[274] = 6
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # a profile that is no RGB one changes nothing
    for profile in (SRGB, swapped.tobytes()):
        data = file_of(pixels, "PNG", exif=exif.tobytes(), icc_profile=profile)
        assert np.array_equal(np.asarray(opened(again(data, "x.png", ".bmp"))), np.rot90(pixels, -1))
    wide = file_of(pixels, "PNG", icc_profile=gamma_one())
    brighter = np.asarray(opened(again(wide, "x.png", ".bmp"))).astype(int) - pixels
    assert brighter.mean() > 20, "linear colours, told as sRGB"
    gray = file_of(samples(4, 7), "PNG", icc_profile=SRGB)
    assert opened(again(gray, "x.png", ".bmp")).mode == "L"
    damaged = file_of(pixels, "JPEG", exif=b"Exif\0\0garbage!")
    assert opened(again(damaged, "x.jpg", ".bmp")).size == opened(again(damaged, "x.jpg", ".tif")).size == (7, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_says_as_before_what_its_numbers_look_like(dtype):
    plain = deep_png.write(samples(5, 6, 3, dtype=np.uint16), type("S", (), {"metadata": {}}))
    data = plain if dtype == np.uint16 else file_of(samples(5, 6, 3), "PNG")
    gamma, white = struct.pack(">I", 100_000), struct.pack(">8I", *range(31_000, 31_008))
    damaged = deep_png._chunk(b"sRGB", b"\0")[:-1] + b"?"
    chunks = deep_png._chunk(b"gAMA", gamma) + deep_png._chunk(b"cHRM", white)
    out = again(data[:33] + chunks + data[33:])
    assert deep_png.take_apart(out)[1] == ((b"gAMA", gamma), (b"cHRM", white))
    assert deep_png.take_apart(data[:33] + damaged + data[33:]) == (data, ())


def test_a_16_bit_png_ends_at_its_end_chunk():
    pixels = samples(5, 6, dtype=np.uint16)
    for rest in (b"\0", b"written on after the end, by a camera", bytes(40)):
        assert np.array_equal(deep_png.read(again(file_of(pixels, "PNG") + rest))[..., 0], pixels)


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["", "x.png", "x.dcm", "x.nii", "x.nii.gz"]))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_a_picture_or_one_reason(data, name):
    for content in (
        data,
        b"\x89PNG\r\n\x1a\n" + data,
        file_of(np.zeros((4, 4), np.uint8), "PNG")[: min(len(data), 40)],
    ):
        with pytest.raises(ImageFileError) as error:
            read_picture(content, name)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "suffix", "message"),
    [
        (b"", "", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "", "a Git LFS pointer, not the image"),
        (b"\n<!DOCTYPE html><html>404</html>", "", "a web page, not the image; download"),
        (file_of(samples(40, 40, 3), "PNG")[:-400], "", "cannot be decoded"),
        (deep_png.write(samples(9, 9, 3, dtype=np.uint16), type("S", (), {"metadata": {}}))[:-30], "", "truncated"),
        (file_of(samples(4, 4, 4), "PNG"), ".jpg", "no transparency"),
        (file_of(samples(4, 4, dtype=np.uint16), "PNG"), ".jpg", "name the output .png or .tif"),
        (tiff_of(RNG.normal(size=(4, 4)).astype(np.float32)), ".png", "name the output .tif"),
        (file_of(samples(4, 4), "PNG"), ".heic", "cannot write .heic"),
        (file_of(Image.new("RGB", (9, 9)), "EPS"), "", "not an image that can be read"),  # by Ghostscript, if at all
    ],
)
def test_what_cannot_be_done_says_what_can(data, suffix, message):
    with pytest.raises(ImageFileError, match=message):
        read_picture(data, "x", suffix)


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    return png[:33] + deep_png._chunk(name, body) + png[33:]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_texts_of_any_size_stay_and_damaged_comments_cost_nothing(dtype):
    plain = file_of(samples(5, 6, dtype=dtype), "PNG")
    chunks = [(b"tEXt", b"parameters\0a prompt"), (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 * 2**20)))]
    chunks += [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta>")]
    data = plain
    for name, body in chunks:
        data = with_chunk(data, name, body)
    wrong = bytearray(with_chunk(data, b"tEXt", b"Comment\0hello"))
    wrong[wrong.index(b"hello")] ^= 1
    assert sorted(deep_png.take_apart(again(bytes(wrong)))[1]) == sorted(chunks)
    profile = again(with_chunk(plain, b"iCCP", b"p\0\0" + zlib.compress(bytes(3 * 2**20))))
    assert opened(profile).size == (6, 5)


def test_what_a_camera_wrote_into_a_jpeg_stays():
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>someone</x:xmpmeta>"
    out = opened(again(file_of(samples(16, 24, 3), "JPEG", xmp=xmp, comment=b"a comment")))
    assert out.info["xmp"] == xmp and out.info["comment"] == b"a comment"
    assert opened(again(file_of(samples(16, 24, 3), "WEBP", xmp=xmp, lossless=True))).info["xmp"] == xmp


@pytest.mark.parametrize("block", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0"])
def test_exif_that_cannot_be_read_turns_nothing(block):
    pixels = samples(16, 24, 3)
    for kind in ("JPEG", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert read_rgb(file_of(pixels, kind, exif=block, **options)).shape == (3, 16, 24)


def test_orientation_that_only_xmp_names_is_kept():
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation=\"6\"/></x:xmpmeta>"
    data = file_of(samples(16, 24, 3), "JPEG", xmp=xmp)
    assert read_rgb(data).shape == (3, 24, 16) and opened(again(data)).getexif()[274] == 6


def test_a_bmp_with_transparency_keeps_it():
    rgba = samples(5, 7, 4)
    for _ in range(2):
        rgba[:, 3:, 3] = 128
        out = opened(again(file_of(rgba, "PNG"), "x.png", ".bmp"))
        assert out.mode == "RGBA" and np.array_equal(np.asarray(out), rgba)
        assert np.array_equal(np.asarray(opened(again(file_of(out, "PNG"), "x.png", ".bmp"))), rgba)


def test_a_gif_keeps_what_is_transparent():
    rgba = np.full((12, 16, 4), (200, 40, 90, 255), np.uint8)
    rgba[:5] = 0
    out = opened(again(file_of(Image.fromarray(rgba), "GIF"), "x.gif"))
    assert np.array_equal(np.asarray(out.convert("RGBA"))[..., 3], rgba[..., 3])


def test_files_that_hang_or_swell_are_refused_before_they_are_decoded():
    png = file_of(samples(9, 9, 3), "PNG")
    second = deep_png._chunk(b"IHDR", struct.pack(">II", 30_000, 30_000) + png[24:29])
    with pytest.raises(ImageFileError, match="two headers"):
        read_picture(png[:33] + second + png[33:])
    jpeg = file_of(samples(64, 64), "JPEG", progressive=True)
    at = jpeg.rindex(b"\xff\xda")
    with pytest.raises(ImageFileError, match="more than 200 scans"):
        read_picture(jpeg[:-2] + jpeg[at:-2] * 300 + jpeg[-2:])


def test_several_pictures_in_a_file_are_told():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("teal", "red", "blue")]
    for kind in ("PNG", "GIF", "WEBP", "TIFF", "MPO"):
        picture = read_picture(file_of(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert "the first of 3 pictures in the file" in picture.notes
        assert np.abs(picture.rgb[0] * 255 - np.asarray(frames[0])).mean() < 30
