"""What a number in a file means: fill values, outliers, 12 bits, bands and transparency spoil no valid sample."""

import numpy as np
import pytest
from picture_files import RNG, again, pixels_of, samples, tags_of, tiff_of

from student.images import netpbm
from student.images.files import read_8_bit, read_picture
from student.images.picture import ImageFileError
from student.images.sample_values import given_range

SCENE = RNG.uniform(5, 45, (40, 60)).astype(np.float32)


def brightened(data: bytes, **more) -> np.ndarray:
    """What comes back when the network brightens everything by a tenth of its range."""
    picture = read_picture(data, **more)
    return pixels_of(picture.encode((picture.rgb + np.float32(0.1)).clip(0, 1)))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int16, np.float64])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_the_largest_number_of_a_type_is_a_fill_too(dtype, share):
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1e20
    pixels = (SCENE * 50).astype(dtype)
    pixels[: int(40 * share)] = top
    out = brightened(tiff_of(pixels))
    assert np.array_equal(out[pixels == top], pixels[pixels == top])
    assert 150 < np.median((out.astype(float) - pixels)[pixels != top]) < 450


@pytest.mark.parametrize(("scale", "offset", "black", "white"), [(1e-4, 0, 0, 10000), (1e-4, -0.1, 1000, 11000)])
def test_scale_and_offset_of_reflectances_are_the_range(scale, offset, black, white):
    items = f'<Item name="S" sample="0" role="scale">{scale}</Item><Item role="offset" name="O">{offset}</Item>'
    tag = [(42112, 2, 0, f"<GDALMetadata>{items}</GDALMetadata>", True)]
    for dtype in (np.uint16, np.int16):
        pixels = RNG.integers(1200, 5000, (20, 30)).astype(dtype)
        picture = read_picture(tiff_of(pixels, extratags=tag, metadata=None))
        assert np.allclose(picture.rgb[0, ..., 0] * (white - black) + black, pixels, atol=0.01)


@pytest.mark.parametrize("top", [255, 65535])
def test_what_is_opaque_in_16_bits(top):
    pixels = samples(9, 12, 4, dtype=np.uint16)
    pixels[0, 0] = 65535
    pixels[..., 3], pixels[:, :6, 3] = top, 0
    shown = np.asarray(read_8_bit(tiff_of(pixels, photometric="rgb", extrasamples=[2])), int)
    assert (shown[:, :6] == 255).all() and np.abs(shown[:, 6:] - pixels[:, 6:, :3] / 257).max() <= 1


@pytest.mark.parametrize("tag", [None, "exact", "-3.40282e+38", "-3.39999999999999996e+38"])
@pytest.mark.parametrize("value", [-3.4028235e38, -9999])
def test_a_fill_value_spoils_no_valid_sample(value, tag):
    pixels = SCENE.copy()
    pixels[3:9, 5:20] = value
    tag = repr(value) if tag == "exact" or (tag and value == -9999) else tag
    extra = [(42113, 2, 0, tag, True)] if tag else None
    out, fill = brightened(tiff_of(pixels, extratags=extra, metadata=None)), pixels == np.float32(value)
    assert np.array_equal(out[fill], pixels[fill]), "given back exactly"
    change = (out - pixels)[~fill]
    assert np.allclose(change, np.minimum(4, 45 - pixels[~fill]), atol=0.05), "a tenth of 5 to 45, within the range"


@pytest.mark.parametrize(
    ("dtype", "odd"), [(np.float32, 1e6), (np.int16, 32000), (np.uint16, 65535), (np.float64, -1e9)]
)
def test_a_hot_pixel_spoils_no_other(dtype, odd):
    pixels = (SCENE * 50).astype(dtype)
    pixels[20, 30] = odd
    change = brightened(tiff_of(pixels)).astype(float) - pixels
    assert change[20, 30] == 0 and 0.5 * 200 < np.median(change) < 2.5 * 200


def test_what_the_network_leaves_alone_keeps_every_bit():
    for pixels in (RNG.normal(280, 9, (30, 40)), RNG.uniform(0, 1e-3, (30, 40)), RNG.integers(-999, 9999, (30, 40))):
        pixels = pixels.astype(np.int32) if pixels.dtype.kind == "i" else pixels
        assert np.array_equal(pixels_of(again(tiff_of(pixels))), pixels)


def test_sentinel_and_12_bit_data_use_the_whole_range():
    for top, white in ((2800, 4095), (9000, 10000), (15000, 16383), (60000, 65535)):
        pixels = RNG.uniform(0, top, (20, 30, 3)).astype(np.uint16)
        picture = read_picture(tiff_of(pixels, photometric="rgb"))
        assert np.allclose(picture.rgb[0] * white, pixels, atol=0.01) and bool(picture.notes) == (white != 65535)
    assert "black is 0 and white is 4095, by the samples" in read_picture(tiff_of(SCENE.astype(np.uint16))).notes


def test_the_range_that_a_person_or_a_tag_names_counts():
    pixels = RNG.integers(0, 2800, (20, 30), dtype=np.uint16)
    for more, extra in (({"span": given_range(0, 8000)}, None), ({}, [(281, 3, 1, 8000, True)])):
        picture = read_picture(tiff_of(pixels, extratags=extra), **more)
        assert np.allclose(picture.rgb[0, ..., 0] * 8000, pixels, atol=0.01)
        assert np.array_equal(pixels_of(picture.encode(picture.rgb)), pixels)


@pytest.mark.parametrize(("dtype", "nodata"), [(np.uint8, 0), (np.uint8, 255), (np.int16, -9999), (np.float32, 0)])
def test_a_sample_never_becomes_no_data(dtype, nodata):
    pixels = np.full((6, 8), 7 if dtype == np.uint8 else nodata + 5, dtype)
    pixels[:2], pixels[2:4] = nodata, 120
    picture = read_picture(tiff_of(pixels, extratags=[(42113, 2, 0, str(nodata), True)], metadata=None))
    for black_or_white in (np.zeros_like(picture.rgb), np.ones_like(picture.rgb)):
        out = pixels_of(picture.encode(black_or_white))
        assert (out[:2] == nodata).all() and (out[2:] != nodata).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_colours_under_transparent_pixels_are_neutral_and_come_back(dtype):
    pixels = samples(9, 12, 4, dtype=dtype)
    pixels[..., 3], pixels[:, :6, 3] = np.iinfo(dtype).max, 0
    for hidden in (0, 99):
        pixels[:, :6, :3] = hidden
        picture = read_picture(tiff_of(pixels, photometric="rgb", extrasamples=[2]))
        seen = picture.rgb[0]
        assert np.allclose(seen[:, :6], seen[:, 6:].mean(), atol=0.01), "what is hidden chooses no prompt"
        assert np.array_equal(pixels_of(picture.encode(1 - picture.rgb))[:, :6], pixels[:, :6])


def test_bands_are_chosen_and_the_others_copied():
    pixels = samples(8, 9, 13, dtype=np.uint16)
    data = tiff_of(np.moveaxis(pixels, -1, 0), photometric="minisblack", planarconfig="separate", metadata=None)
    for bands in ([3, 2, 1], [12]):
        picture = read_picture(data, bands=bands)
        assert np.allclose(picture.rgb[0] * 65535, pixels[..., bands], atol=0.01)
        out = pixels_of(picture.encode(1 - picture.rgb))
        assert np.array_equal(out[..., bands], 65535 - pixels[..., bands])
        rest = [band for band in range(13) if band not in bands]
        assert np.array_equal(out[..., rest], pixels[..., rest])
    with pytest.raises(ImageFileError, match="--bands 14: the file has 13"):
        read_picture(data, bands=[13])


def test_a_deep_negative_comes_back_as_one():
    pixels = samples(8, 9, dtype=np.uint16)
    data = tiff_of(pixels, photometric="miniswhite", metadata=None)
    assert np.array_equal(pixels_of(again(data)), pixels) and tags_of(again(data))[262].value == 0
    assert (brightened(data) <= pixels).all(), "brighter is a smaller number"


def test_where_a_raw_scene_lies_and_what_programs_wrote_stays():
    rpc, xmp = tuple(float(x) for x in range(92)), b"<x:xmpmeta>someone</x:xmpmeta>"
    extra = [(50844, 12, 92, rpc, True), (700, 1, len(xmp), xmp, True), (285, 2, 0, "page", True)]
    for dtype in (np.uint8, np.uint16):
        data = tiff_of(
            samples(5, 6, 3, dtype=dtype), photometric="rgb", extratags=extra, software="scan", metadata=None
        )
        tags = tags_of(again(data))
        assert tags[50844].value == rpc and bytes(tags[700].value) == xmp
        assert tags[285].value == "page" and tags[305].value == "scan"
        with pytest.raises(ImageFileError, match="holds no georeference"):
            read_picture(data, "x.tif", ".png")


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_netpbm_keeps_every_bit_and_its_top(channels):
    pixels = RNG.integers(0, 4096, (5, 7, channels), dtype=np.uint16)
    data = netpbm.write(pixels, 4095)
    picture = read_picture(data)
    assert picture.rgb.max() == pytest.approx(pixels.max() / 4095) and again(data) == data
    with pytest.raises(ImageFileError, match="cannot be decoded"):
        read_picture(data[:-3])
