"""Pixels come out of every encoding as they went in: TIFF, deep JPEG 2000, AVIF and PNM; in bounded memory."""

import tracemalloc

import imagecodecs
import nibabel
import numpy as np
import pytest
from picture_files import RNG, again, file_of, pixels_of, tags_of, tiff_of

from student.images.files import inspect, read_8_bit, read_picture
from student.images.picture import ImageFileError, TooLittleMemory, check_size
from student.images.slices import SAMPLE_BYTES, check_volume

DOWN, ACROSS = np.mgrid[:48, :72]
SMOOTH = np.stack([ACROSS / 71, DOWN / 47, (ACROSS + DOWN) / 118], -1) * 0.9 + 0.05


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits", "lzma", "lerc", "png", "jpegxl"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiffs_of_every_compression_order_and_layout(compression, dtype):
    top, read = (1 if dtype == np.float32 else np.iinfo(dtype).max), 0
    colours = np.round(SMOOTH * 255) / 255 * top
    colours = (colours if dtype == np.float32 else np.round(colours)).astype(dtype)
    for layout in ({}, {"tile": (16, 32)}, {"planarconfig": "separate"}, {"predictor": True}):
        for order in "<>":
            stored = np.moveaxis(colours, -1, 0) if "planarconfig" in layout else colours
            more = {"photometric": "rgb", "compression": compression, "byteorder": order, "metadata": None}
            try:
                data = tiff_of(stored, **more, **layout)
            except (NotImplementedError, ValueError, RuntimeError):  # no such TIFF can be made
                continue
            read += 1
            shown = np.asarray(read_8_bit(data), int)
            assert np.abs(shown - SMOOTH * 255).max() < (4 if compression == "jpegxl" else 1), (layout, order)
            assert pixels_of(again(data)).dtype == dtype
    assert read >= 2 or (compression, dtype) == ("png", np.float32)


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_packed_bits_of_a_tiff_are_its_range_and_stay_it(bits):
    pixels = np.round(SMOOTH[..., 0] * (2**bits - 1)).astype(np.uint16)
    data = tiff_of(pixels, photometric="minisblack", bitspersample=bits, metadata=None)
    for file in (data, again(data)):
        assert np.abs(np.asarray(read_8_bit(file), int)[..., 0] - SMOOTH[..., 0] * 255).max() <= 1
    assert np.array_equal(pixels_of(again(data)), pixels)
    assert tags_of(again(data))[281].value == 2**bits - 1


def j2k(pixels: np.ndarray, bits: int, kind: str = "jp2") -> bytes:
    return imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, bitspersample=bits, codecformat=kind)


@pytest.mark.parametrize("shape", [..., (..., 0)])
@pytest.mark.parametrize(("bits", "top", "kind"), [(12, 4095, "j2k"), (15, 10000, "jp2"), (16, 65535, "jp2")])
def test_deep_jpeg_2000_keeps_its_numbers(shape, bits, top, kind):
    pixels = np.ascontiguousarray(np.round(SMOOTH * top).astype(np.uint16)[shape])
    data = j2k(pixels, bits, kind)
    assert np.array_equal(pixels_of(again(data, "x.jp2", ".tif")), pixels)
    assert np.abs(np.asarray(read_8_bit(data), float) - (SMOOTH[shape] * 255).reshape(48, 72, -1)).max() <= 1
    assert inspect(data).mode in ("I;16", "RGB;16")
    with pytest.raises(ImageFileError, match="JPEG2000 holds 8 bits, the input 16; name the output .png or .tif"):
        read_picture(data)


@pytest.mark.parametrize("bits", [10, 12])
def test_a_deep_avif_is_a_photograph_of_16_bits(bits):
    data = imagecodecs.avif_encode(np.round(SMOOTH * (2**bits - 1)).astype(np.uint16), bitspersample=bits, level=100)
    out = read_picture(again(data, "x.avif", ".png"))
    assert out.kind == "16-bit RGB PNG" and np.abs(out.rgb[0] - SMOOTH).max() < 0.02
    assert np.abs(out.rgb * 255 - np.round(out.rgb * 255)).max() > 0.3, "more than 8 bits"


@pytest.mark.parametrize("top", [4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3"])
def test_deep_pnm_in_letters(kind, top):
    pixels = np.round(SMOOTH * top).astype(int)[..., : 1 if kind == "P2" else 3]
    data = f"{kind}\n# by hand\n72 48\n{top}\n".encode() + b" ".join(b"%d" % x for x in pixels.ravel()) + b" # end\n"
    assert np.array_equal(np.round(read_picture(data).rgb[0, ..., : pixels.shape[-1]] * top), pixels)
    assert np.array_equal(read_picture(again(data)).rgb, read_picture(data).rgb)


def peak(data: bytes, name: str) -> float:
    """Bytes of memory a sample, of one colour in medical files, from the file's bytes to the output's."""
    tracemalloc.start()
    picture = read_picture(data, name)
    picture.encode(picture.rgb.copy())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / picture.rgb[..., 0].size


def test_no_picture_takes_more_memory_than_was_asked_for():
    """Which is checked before the work, so nothing is killed in the middle of it."""
    noise = RNG.random((800, 1000, 3)) * 3000
    for dtype in (np.uint16, np.float32, np.float64):
        room = 32 + 3 * 4 * np.dtype(dtype).itemsize
        assert peak(tiff_of(noise.astype(dtype), photometric="rgb"), "a.tif") < room, dtype
    assert peak(file_of((noise / 12).astype(np.uint8), "JPEG"), "a.jpg") < 40
    for dtype in (np.int16, np.float64):
        volume = nibabel.Nifti1Image((noise[:400] / 12).astype(dtype), np.eye(4))
        assert peak(volume.to_bytes(), "a.nii") < SAMPLE_BYTES, dtype


def test_what_is_too_large_says_what_to_do():
    with pytest.raises(TooLittleMemory, match="90000x90000x900 pixels take .* GB are free; .* split the volume"):
        check_volume((90000, 90000, 900))
    with pytest.raises(TooLittleMemory, match="cut the picture into parts"):
        check_size(900_000, 900_000)
