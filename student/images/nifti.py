"""NIfTI: a volume's slices in physical values, and back. Optional extra `medical`: nibabel."""

import gzip
import io
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from student.images.picture import ImageFileError, Picture
from student.images.sample_values import SURVEYED, ValueRange, find_fill, to_type
from student.images.slices import check_volume, picture_of, seen_range

if TYPE_CHECKING:
    from nibabel import Nifti1Image

PACKED = b"\x1f\x8b"
LABELS = {1002: "a map of labels", **dict.fromkeys(range(3000, 3016), "CIFTI, no image of voxels")}
"""Intent codes of files that are no pictures."""
FEWEST_NUMBERS = 16
"""A volume of fewer small whole numbers is a map of labels, which most programs write without saying so."""
MOST_EQUAL = 0.6
"""Nor is it an image if more neighbours than this are equal, the background apart: under 0.11 in templates and scans
of 8 and 16 bits, and above 0.8 in atlases [measured]."""


def _unpacked(data: bytes) -> bytes:
    """The volume in a gzip file, and no more than its header promises, if there is memory for it."""
    with gzip.open(io.BytesIO(data)) as file:
        start = file.read(1024)
        voxels = _voxels(start)
        most = 2**20 + 16 * voxels + 2**24  # header, the largest type, and extensions
        rest = file.read(most)
    if len(rest) >= most:
        raise ImageFileError("a NIfTI volume that unpacks to more than its header says")
    return start + rest


def _voxels(start: bytes) -> int:
    """How many a header promises; raises `ImageFileError` where there is no memory for them."""
    second = 540 in (int.from_bytes(start[:4], order) for order in ("little", "big"))
    order = "<" if int.from_bytes(start[:4], "little") in (348, 540) else ">"
    at, kind = (16, "i8") if second else (40, "i2")
    count, *sides = np.frombuffer(start, np.dtype(kind).newbyteorder(order), 8, at).tolist()
    shape = [max(side, 1) for side in sides[: min(max(count, 0), 7)]]
    check_volume(tuple(shape))
    return prod(shape)


def _is_label_map(stored: np.ndarray) -> bool:
    """By the samples, where no header says it."""
    if stored.dtype.kind not in "iu" or stored.size < 1000:
        return False
    some = stored.reshape(*stored.shape[:2], -1)[..., :: -(-stored.size // SURVEYED)]
    found, counts = np.unique(some, return_counts=True)
    if found[0] < 0 or len(found) < 2:
        return False
    background = found[counts.argmax()]
    one, other = some[:-1], some[1:]
    inside = (one != background) & (other != background)
    alike = (one == other)[inside].mean() if inside.any() else 0.0
    return bool(len(found) < FEWEST_NUMBERS and found[-1] <= 255 or alike > MOST_EQUAL)


def open_nifti(data: bytes) -> "Nifti1Image":
    """The volume, as nibabel has it, whose voxels can be read as slices; raises `ImageFileError`."""
    import nibabel
    from nibabel.imageglobals import logger

    unpacked = _unpacked(data) if data.startswith(PACKED) else data
    # The header's own size, in either byte order, is its version.
    second = 540 in (int.from_bytes(unpacked[:4], order) for order in ("little", "big"))
    logger.disabled = True  # what it logs of a damaged header, it then raises
    try:
        volume = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(unpacked)
    finally:
        logger.disabled = False
    if (intent := int(volume.header["intent_code"])) in LABELS:
        raise ImageFileError(f"{LABELS[intent]} (NIfTI intent {intent}), not a picture: leave it out")
    if len(volume.shape) < 2 or volume.get_data_dtype().kind not in "iuf":
        raise ImageFileError(
            f"NIfTI of shape {volume.shape} and type {volume.get_data_dtype()}: not slices of an image"
        )
    check_volume(volume.shape)
    if _is_label_map(volume.dataobj.get_unscaled()):
        raise ImageFileError("few whole numbers in large pieces: a map of labels, not a picture")
    return volume


def read_nifti(data: bytes, span: ValueRange | None) -> Picture:
    volume = open_nifti(data)
    values = np.asarray(volume.dataobj, dtype=np.float64)
    slices = np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)
    gap = ~np.isfinite(slices)
    if (fill := find_fill(slices[~gap])) is not None:
        gap |= slices == fill
    window = float(volume.header["cal_min"]), float(volume.header["cal_max"])
    stored = volume.get_data_dtype()
    slope, intercept = float(volume.dataobj.slope), float(volume.dataobj.inter)
    span = span or seen_range(window, slices[~gap])

    def write(new: np.ndarray) -> bytes:
        new -= intercept
        new /= slope
        raw = np.stack([to_type(plane, stored) for plane in new], -1).reshape(values.shape)
        header = volume.header.copy()
        header.set_slope_inter(1, 0)  # nibabel then writes `raw` as it is; the true scale is put back below
        out = bytearray(type(volume)(raw, volume.affine, header).to_bytes())
        number, at = header.structarr.dtype.fields["scl_slope"][:2]  # scl_inter follows it
        scale = np.array([slope, intercept], number.newbyteorder(header.endianness)).tobytes()
        out[at : at + len(scale)] = scale
        return gzip.compress(bytes(out), 6) if data.startswith(PACKED) else bytes(out)

    return picture_of(slices, span, gap, False, write, f"{slices.shape[0]} slices of {stored} NIfTI")
