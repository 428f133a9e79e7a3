"""DICOM and NIfTI slices: restored in the window that a reader sees, written back with every sample's own depth.

A slice goes into the network as its display window, scaled to [0, 1]. What the network changed is then *added* to the
stored samples: what lies outside the window (bone, metal, air) keeps its value, and so does padding.
Optional extra `medical`: pydicom, nibabel.
"""

import gzip
import io
import zlib
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from student.images.formats import DICOM, NIFTI, is_dicom
from student.images.picture import ImageFileError, Picture, check_size
from student.images.sample_values import ValueRange, find_fill, own_range, to_type

NOT_PICTURES = {"RTDOSE": "a grid of radiation doses", "SEG": "a segmentation"}
"""Modalities whose samples are quantities or labels: what a network makes of them would be taken for measured."""

LABELS = {1002: "a map of labels", **dict.fromkeys(range(3000, 3016), "CIFTI, no image of voxels")}
"""Intent codes of NIfTI files that are no pictures."""
SAMPLE_BYTES = 64
"""Memory for each: as stored, as float64, as float32 colours before and after, and packed."""


def is_medical(data: bytes, name: str) -> bool:
    """By content for DICOM, by suffix for both."""
    return is_dicom(data[:132]) or name.lower().endswith(NIFTI + DICOM)


def own_suffix(data: bytes, name: str, output_suffix: str) -> str:
    """`output_suffix` as `read_picture` wants it: nothing where it names the medical format that the content has.

    So `- out.dcm` and `IM0001 out.dcm` are no conversions. Raises `ImageFileError` where they would be.
    """
    if not output_suffix or not is_medical(data, name):
        return output_suffix
    if name.lower().endswith(NIFTI):
        if name.lower().endswith(output_suffix):
            return ""
        raise ImageFileError(f"a NIfTI volume keeps its own format; name the output *{_nifti_suffix(name)}")
    if output_suffix in DICOM:
        return ""
    raise ImageFileError("a DICOM file keeps its own format; name the output *.dcm")


def _nifti_suffix(name: str) -> str:
    return NIFTI[1] if name.lower().endswith(NIFTI[1]) else NIFTI[0]


def read_medical(data: bytes, name: str, span: ValueRange | None = None) -> Picture:
    """Decode a DICOM file or a NIfTI volume; raises `ImageFileError`.

    `span`: what is black and white, in the file's physical values (Hounsfield units in CT).
    """
    reader = _read_nifti if name.lower().endswith(NIFTI) else _read_dicom
    package = "nibabel" if reader is _read_nifti else "pydicom"
    try:
        return reader(data, span)
    except ImageFileError:
        raise
    except ImportError as error:
        raise ImageFileError(f"needs {package} ({error}): pip install 'teachonce[medical]'") from None
    except Exception as error:  # these libraries raise a wide range of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(f"cannot be decoded by {package}: {reason}") from error


def _picture(
    slices: np.ndarray,
    span: ValueRange,
    gap: np.ndarray,
    inverted: bool,
    write: Callable[[np.ndarray], bytes],
    kind: str,
) -> Picture:
    """A picture of the float64 samples `slices` `[n, H, W]`; `write` takes them restored, `gap` (alike) is kept."""
    seen = span.seen(np.nan_to_num(slices))
    seen = 1 - seen if inverted else seen
    if gap.any():
        seen[gap] = seen[~gap].mean(dtype=np.float64) if not gap.all() else 0

    def encode(restored: np.ndarray) -> bytes:
        change = restored.mean(-1, dtype=np.float64) - seen
        return write(np.where(gap, slices, span.updated(slices, -change if inverted else change)))

    return Picture(np.repeat(seen[..., None], 3, axis=-1), encode, f"{kind}, window {span.low:g} to {span.high:g}")


def _seen_range(window: tuple[float, float] | None, valid: np.ndarray) -> ValueRange:
    """The window, unless it holds no sample or is none; else what the samples say."""
    if window and window[0] < window[1] and ((valid > window[0]) & (valid < window[1])).any():
        return ValueRange(*window, "by the file's window")
    return own_range(valid)


def _read_dicom(data: bytes, span: ValueRange | None) -> Picture:
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

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
    check_size(dataset.Rows, dataset.Columns * int(dataset.get("NumberOfFrames", 1) or 1), None, SAMPLE_BYTES)
    if not dataset.file_meta.get("TransferSyntaxUID"):  # as it travels over a network, or from before 1993
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
        )
    # Numbers in private elements are bytes that nobody can turn around, so big endian stays big endian.
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(generate_instance_uid=False)
    stored = dataset.pixel_array
    slices = stored.reshape(-1, *stored.shape[-2:]).astype(np.float64)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    gap = _padding(dataset, slices)
    if span is None:
        window = _dicom_window(dataset)
        window = window and tuple(sorted((end - intercept) / slope for end in window))
        span = _seen_range(window, slices[~gap])
    else:
        low, high = sorted((end - intercept) / slope for end in (span.low, span.high))
        span = ValueRange(low, high, span.source)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def write(new: np.ndarray) -> bytes:
        new = np.where((new != slices) & _padding(dataset, new.round()), slices, new)  # a sample becomes no padding
        samples = np.where(new == slices, stored.reshape(slices.shape), to_type(new, stored.dtype, limits))
        samples = samples.astype(samples.dtype.newbyteorder(">" if big else "<"))
        dataset.PixelData = samples.reshape(stored.shape).tobytes()
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
        # A changed image is another instance: viewers and archives must not take it for the original.
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        types = dataset.get("ImageType") or []
        dataset.ImageType = ["DERIVED", "SECONDARY", *([] if isinstance(types, str) else list(types)[2:])]
        dataset.DerivationDescription = "Restored by a neural network (teachonce)"
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        return out.getvalue()

    return _picture(slices, span, gap, (kind == "MONOCHROME1") != (slope < 0), write, f"{bits}-bit DICOM")


def _padding(dataset: Any, slices: np.ndarray) -> np.ndarray:
    """Which samples are PixelPaddingValue, or from it to PixelPaddingRangeLimit, or a fill that no tag names."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        fill = find_fill(slices.ravel())
        return np.zeros(slices.shape, bool) if fill is None else slices == fill
    ends = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit") or value)))
    return (slices >= ends[0]) & (slices <= ends[1])


def _dicom_window(dataset: Any) -> tuple[float, float] | None:
    """The first display window in physical values; enhanced files keep it in their functional groups."""
    groups = [g for name in ("Shared", "PerFrame") for g in dataset.get(f"{name}FunctionalGroupsSequence") or []]
    holders = [dataset, *(item for group in groups for item in group.get("FrameVOILUTSequence") or [])]
    for holder in holders:
        centre, width = holder.get("WindowCenter"), holder.get("WindowWidth")
        if centre is not None and width is not None:
            centre, width = (float(x[0] if hasattr(x, "__len__") else x) for x in (centre, width))
            return centre - max(width, 1) / 2, centre + max(width, 1) / 2
    return None


def _unpacked(data: bytes) -> bytes:
    """The volume in a gzip file, and no more than its header promises, if there is memory for it."""
    unpack = zlib.decompressobj(31)
    start = unpack.decompress(data, 1024)
    second = 540 in (int.from_bytes(start[:4], order) for order in ("little", "big"))
    order = "<" if int.from_bytes(start[:4], "little") in (348, 540) else ">"
    at, kind = (16, "i8") if second else (40, "i2")
    count, *sides = np.frombuffer(start, np.dtype(kind).newbyteorder(order), 8, at).tolist()
    voxels = prod(max(side, 1) for side in sides[: min(max(count, 0), 7)])
    check_size(voxels, 1, None, SAMPLE_BYTES)
    most = 2**20 + 16 * voxels + 2**24  # header, the largest type, and extensions
    rest = unpack.decompress(unpack.unconsumed_tail, most)
    if not unpack.eof and len(rest) >= most:
        raise ImageFileError("a NIfTI volume that unpacks to more than its header says")
    return start + rest + unpack.flush(2**16)


def _read_nifti(data: bytes, span: ValueRange | None) -> Picture:
    import nibabel
    from nibabel.imageglobals import logger

    packed = data[:2] == b"\x1f\x8b"
    unpacked = _unpacked(data) if packed else data
    # The header's own size, in either byte order, is its version.
    second = 540 in (int.from_bytes(unpacked[:4], order) for order in ("little", "big"))
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    logger.disabled = True  # what it logs of a damaged header, it then raises
    try:
        volume = kind.from_bytes(unpacked)
    finally:
        logger.disabled = False
    if (intent := int(volume.header["intent_code"])) in LABELS:
        raise ImageFileError(f"{LABELS[intent]} (NIfTI intent {intent}), not a picture: leave it out")
    if len(volume.shape) < 2 or volume.get_data_dtype().kind not in "iuf":
        raise ImageFileError(
            f"NIfTI of shape {volume.shape} and type {volume.get_data_dtype()}: not slices of an image"
        )
    check_size(prod(volume.shape), 1, None, SAMPLE_BYTES)
    values = np.asarray(volume.dataobj, dtype=np.float64)
    slices = np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)
    gap = ~np.isfinite(slices)
    if (fill := find_fill(slices[~gap])) is not None:
        gap |= slices == fill
    window = float(volume.header["cal_min"]), float(volume.header["cal_max"])
    stored = volume.get_data_dtype()
    span = span or _seen_range(window, slices[~gap])

    def write(new: np.ndarray) -> bytes:
        samples = np.moveaxis(new, 0, -1).reshape(values.shape)
        header = volume.header.copy()
        slope, intercept = (float(x) for x in (volume.dataobj.slope, volume.dataobj.inter))
        raw = to_type((samples - intercept) / slope, stored)
        header.set_slope_inter(1, 0)  # nibabel then writes `raw` as it is; the true scale is put back below
        out = bytearray(kind(raw, volume.affine, header).to_bytes())
        number, at = header.structarr.dtype.fields["scl_slope"][:2]  # scl_inter follows it
        scale = np.array([slope, intercept], number.newbyteorder(header.endianness)).tobytes()
        out[at : at + len(scale)] = scale
        return gzip.compress(bytes(out), 6) if packed else bytes(out)

    return _picture(slices, span, gap, False, write, f"{slices.shape[0]} slices of {stored} NIfTI")
