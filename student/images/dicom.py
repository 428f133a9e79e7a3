"""DICOM: the pixels in physical values, and back into a file of the same kind. Optional extra `medical`: pydicom."""

import hashlib
import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from student.images.picture import ImageFileError, Picture
from student.images.sample_values import ValueRange, find_fill, to_type
from student.images.slices import check_volume, picture_of, seen_range

if TYPE_CHECKING:
    from pydicom import Dataset

NOT_PICTURES = {"RTDOSE": "a grid of radiation doses", "SEG": "a segmentation"}
"""Modalities whose samples are quantities or labels: what a network makes of them would be taken for measured."""
MOST_DEFLATED = 2**28


def open_dicom(data: bytes) -> "Dataset":
    """The data set of a file whose pixels can be read as a gray picture; raises `ImageFileError`."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if b"1.2.840.10008.1.2.1.99" in data[:1024] and data[128:132] == b"DICM":
        _check_deflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data), force=data[128:132] != b"DICM")
    if "PixelData" not in dataset:
        raise ImageFileError("a DICOM file without pixels")
    kind = dataset.PhotometricInterpretation
    if dataset.get("Modality") in NOT_PICTURES:
        raise ImageFileError(
            f"{NOT_PICTURES[dataset.Modality]} (DICOM {dataset.Modality}), not a picture: leave it out"
        )
    if dataset.SamplesPerPixel != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageFileError(f"a colour DICOM file ({kind}); export it as PNG first")
    if dataset.BitsAllocated not in (8, 16, 32):
        raise ImageFileError(f"a DICOM file of {dataset.BitsAllocated} bit: not an image but a mask")
    check_volume((dataset.Rows, dataset.Columns, int(dataset.get("NumberOfFrames", 1) or 1)))
    if not dataset.file_meta.get("TransferSyntaxUID"):  # as it travels over a network, or from before 1993
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
        )
    return dataset


def values_of(dataset: "Dataset") -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Samples `[n, H, W]` as stored; in physical values (float64); and a function from these back to the former."""
    stored = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    holders = [_holders(dataset, "PixelValueTransformationSequence", frame) for frame in range(len(stored))]
    slope = np.array([_number(x, "RescaleSlope") or 1.0 for x in holders])[:, None, None]
    intercept = np.array([_number(x, "RescaleIntercept") or 0.0 for x in holders])[:, None, None]
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = stored.astype(np.float64)
    values *= slope
    values += intercept

    def back(new: np.ndarray) -> np.ndarray:
        return to_type((new - intercept) / slope, stored.dtype, limits)

    return stored, values, back


def read_dicom(data: bytes, span: ValueRange | None) -> Picture:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

    dataset = open_dicom(data)
    # Numbers in private elements are bytes that nobody can turn around, so big endian stays big endian.
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(generate_instance_uid=False)
    stored, slices, back = values_of(dataset)
    low, high = padding_of(dataset, stored) or (1, 0)
    gap = (stored >= low) & (stored <= high)
    span = span or seen_range(_window(dataset), slices[~gap])

    named = [str(dataset.get(name, "")) for name in ("SOPInstanceUID", "SeriesInstanceUID")]

    def write(new: np.ndarray) -> bytes:
        samples = back(new)
        keep = (new == slices) | (samples >= low) & (samples <= high)  # a sample becomes no padding
        samples[keep] = stored[keep]
        dataset.PixelData = samples.astype(samples.dtype.newbyteorder(">" if big else "<")).tobytes()
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
        # A changed image is another instance, in a series of its own: viewers and archives must not take it for the
        # original. The slices of one series stay in one, and the same result has the same names.
        result = hashlib.sha256(dataset.PixelData).hexdigest()
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["teachonce", named[0], result])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if named[1]:
            dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["teachonce", named[1]])
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        types = dataset.get("ImageType") or []
        dataset.ImageType = ["DERIVED", "SECONDARY", *([] if isinstance(types, str) else list(types)[2:])]
        dataset.DerivationDescription = "Restored by a neural network (teachonce)"
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        return out.getvalue()

    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return picture_of(slices, span, gap, inverted, write, f"{dataset.BitsStored}-bit DICOM")


def _check_deflated(data: bytes) -> None:
    """Raises `ImageFileError` for a data set that unpacks to more than anybody deflates."""
    unpack, size = zlib.decompressobj(-15), 0
    rest = data[144 + int.from_bytes(data[140:144], "little") :]
    while rest:
        size += len(unpack.decompress(rest, 2**24))
        rest = unpack.unconsumed_tail
        if size > MOST_DEFLATED:
            raise ImageFileError("a deflated DICOM file of more than 256 MB: unpack it first, such as with dcmconv")


def padding_of(dataset: "Dataset", stored: np.ndarray) -> tuple[float, float] | None:
    """The smallest and largest stored sample that are padding: by the tags, or a fill that no tag names."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        fill = find_fill(stored.ravel())
        return None if fill is None else (fill, fill)
    ends = int(value), int(dataset.get("PixelPaddingRangeLimit") or value)
    low, high = sorted(np.array(ends, np.int64).astype(stored.dtype).tolist())  # 63536 is what some write for -2000
    return low, high


def _holders(dataset: "Dataset", sequence: str, frame: int = 0) -> list["Dataset"]:
    """Where a value of a frame may stand: its functional groups and the shared ones (enhanced files), the file."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*own[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])]
    return [item for group in groups for item in group.get(sequence) or []] + [dataset]


def _number(holders: list["Dataset"], name: str) -> float | None:
    """The first value of the first holder that has it."""
    for value in (holder.get(name) for holder in holders):
        first = value[0] if hasattr(value, "__len__") and len(value) else value
        if first not in (None, ""):
            return float(first)
    return None


def _window(dataset: "Dataset") -> tuple[float, float] | None:
    """The first display window, in physical values; None where these come from a table."""
    holders = _holders(dataset, "FrameVOILUTSequence")
    centre, width = _number(holders, "WindowCenter"), _number(holders, "WindowWidth")
    if centre is None or width is None or dataset.get("ModalityLUTSequence"):
        return None
    return centre - max(width, 1) / 2, centre + max(width, 1) / 2
