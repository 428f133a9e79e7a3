"""Every picture arrives upright, in RGB and with its real range; everything else is one `BadImage` with a reason."""

import numpy as np
import pytest
from hostile_images import encode, make_hostile_images, png_claiming
from PIL import Image

from teacher.pixels import BadImage, load_rgb


def test_sixty_hostile_files_each_end_as_a_picture_or_a_reason(tmp_path):
    for name, status in make_hostile_images(tmp_path).items():
        if status == "ok":
            image = load_rgb(tmp_path / name)
            assert image.mode == "RGB" and image.width > 0, name
        else:
            with pytest.raises(BadImage) as error:
                load_rgb(tmp_path / name)
            assert error.value.reason and "\n" not in error.value.reason, name


@pytest.mark.parametrize("dtype, top", [(np.uint16, 65535), (np.float32, 1.0), (np.float32, 255.0)])
def test_deep_gray_keeps_its_proportions_and_never_saturates(dtype, top):
    ramp = np.linspace(0, top, 256).astype(dtype).reshape(16, 16)
    shown = np.asarray(load_rgb(encode(Image.fromarray(ramp), "TIFF")))[..., 0]
    assert np.abs(shown.ravel().astype(int) - np.arange(256)).max() <= 1


def test_a_16_bit_value_of_1000_is_dark_not_white():
    assert load_rgb(encode(Image.fromarray(np.full((4, 4), 1000, np.uint16)), "PNG")).getpixel((0, 0)) == (4, 4, 4)


def test_negative_values_use_the_images_own_range():
    hounsfield = np.array([[-1000, 0], [1000, 3000]], np.float32)
    assert np.asarray(load_rgb(encode(Image.fromarray(hounsfield), "TIFF")))[..., 0].tolist() == [[0, 64], [128, 255]]


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation_is_applied(orientation, corner):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16] = 255  # the stored top-left corner is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(load_rgb(encode(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)))
    assert upright[corner].min() > 200
    assert upright.shape[:2] == ((48, 32) if orientation in (6, 8) else (32, 48))


def test_transparent_pixels_are_white_not_what_hides_below():
    assert load_rgb(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_the_pixel_limit_is_judged_before_decoding():
    with pytest.raises(BadImage, match="6000x6000 has more than 1000000 pixels"):
        load_rgb(png_claiming(6_000, 6_000), max_pixels=1_000_000)


def test_missing_files_and_folders_are_named(tmp_path):
    for path, reason in ((tmp_path / "nothing.png", "no such file"), (tmp_path, "not a file")):
        with pytest.raises(BadImage, match=reason):
            load_rgb(path)
