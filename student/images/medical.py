"""DICOM and NIfTI slices: restored in the window that a reader sees, written back with every sample's own depth.

A slice goes into the network as its display window, scaled to [0, 1]. What the network changed is then *added* to the
stored samples: what lies outside the window (bone, metal, air) keeps its value, and the range of the file stays.
Optional extra `medical`: pydicom, nibabel.
"""

import gzip
import io
from collections.abc import Callable

import numpy as np

from student.images.picture import ImageFileError, Picture

NIFTI = (".nii", ".nii.gz")
DICOM = (".dcm", ".dicom")
NOT_PICTURES = {"RTDOSE": "a grid of radiation doses", "SEG": "a segmentation"}
"""Modalities whose samples are quantities or labels: what a network makes of them would be taken for measured."""


def is_medical(data: bytes, name: str) -> bool:
    """By content for DICOM (its marker follows 128 free bytes), by suffix for both."""
    return data[128:132] == b"DICM" or name.lower().endswith(NIFTI + DICOM)


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


def read_medical(data: bytes, name: str) -> Picture:
    """Decode a DICOM file or a NIfTI volume; raises `ImageFileError`."""
    reader = _read_nifti if name.lower().endswith(NIFTI) else _read_dicom
    package = "nibabel" if reader is _read_nifti else "pydicom"
    try:
        return reader(data)
    except ImageFileError:
        raise
    except ImportError as error:
        raise ImageFileError(f"needs {package} ({error}): pip install 'teachonce[medical]'") from None
    except Exception as error:  # these libraries raise a wide range of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(f"cannot be decoded by {package}: {reason}") from error


def _windowed(slices: np.ndarray, low: float, high: float, inverted: bool = False) -> np.ndarray:
    """Samples `[n, H, W]` as the network's `[n, H, W, 3]` in [0, 1]."""
    scaled = ((slices - low) / max(high - low, 1e-12)).clip(0, 1).astype(np.float32)
    return np.repeat((1 - scaled if inverted else scaled)[..., None], 3, axis=-1)


def _updated(slices: np.ndarray, restored: np.ndarray, low: float, high: float, inverted: bool = False) -> np.ndarray:
    """The samples, those within the window plus what the network changed, float64.

    Outside, the network saw the window's end instead of the sample: its answer says nothing about that.
    """
    change = restored.mean(-1, dtype=np.float64) - _windowed(slices, low, high, inverted)[..., 0]
    change *= (slices >= low) & (slices <= high)
    return slices + change * (high - low) * (-1 if inverted else 1)


def _to_type(samples: np.ndarray, dtype: np.dtype, low: float | None = None, high: float | None = None) -> np.ndarray:
    if dtype.kind == "f":
        return samples.astype(dtype)
    info = np.iinfo(dtype)
    lowest, highest = info.min if low is None else low, info.max if high is None else high
    return np.round(samples).clip(lowest, highest).astype(dtype)


def _read_dicom(data: bytes) -> Picture:
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

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
    # Numbers in private elements are bytes that nobody can turn around, so big endian stays big endian.
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(generate_instance_uid=False)
    stored = dataset.pixel_array
    slices = stored.reshape(-1, *stored.shape[-2:]).astype(np.float64)
    low, high = _dicom_window(dataset, slices)
    inverted = kind == "MONOCHROME1"
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def encode(restored: np.ndarray) -> bytes:
        samples = _to_type(_updated(slices, restored, low, high, inverted), stored.dtype, *limits)
        samples = samples.astype(samples.dtype.newbyteorder(">" if big else "<"))
        dataset.PixelData = samples.reshape(stored.shape).tobytes()
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
        # A changed image is another instance: viewers and archives must not take it for the original.
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImageType = ["DERIVED", "SECONDARY", *list(dataset.get("ImageType", []))[2:]]
        dataset.DerivationDescription = "Restored by a neural network (teachonce)"
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        return out.getvalue()

    return Picture(_windowed(slices, low, high, inverted), encode, f"{bits}-bit DICOM, window {low:g} to {high:g}")


def _dicom_window(dataset: "object", slices: np.ndarray) -> tuple[float, float]:
    """The first display window in stored values, or the range of the samples where there is none."""
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre is None or width is None:
        return float(slices.min()), float(slices.max())
    first: Callable = lambda value: float(value[0] if hasattr(value, "__len__") else value)  # noqa: E731
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0))
    half = max(first(width), 1) / 2
    return ((first(centre) - half) - intercept) / slope, ((first(centre) + half) - intercept) / slope


def _read_nifti(data: bytes) -> Picture:
    import nibabel
    from nibabel.imageglobals import logger

    packed = data[:2] == b"\x1f\x8b"
    unpacked = gzip.decompress(data) if packed else data
    # The header's own size, in either byte order, is its version.
    second = 540 in (int.from_bytes(unpacked[:4], order) for order in ("little", "big"))
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    logger.disabled = True  # what it logs of a damaged header, it then raises
    try:
        volume = kind.from_bytes(unpacked)
    finally:
        logger.disabled = False
    if len(volume.shape) < 2 or volume.get_data_dtype().kind not in "iuf":
        raise ImageFileError(
            f"NIfTI of shape {volume.shape} and type {volume.get_data_dtype()}: not slices of an image"
        )
    values = np.asarray(volume.dataobj, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ImageFileError("has samples that are not finite")
    slices = np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)
    low, high = _nifti_window(volume.header, slices)

    def encode(restored: np.ndarray) -> bytes:
        samples = np.moveaxis(_updated(slices, restored, low, high), 0, -1).reshape(values.shape)
        header, stored = volume.header.copy(), volume.get_data_dtype()
        slope, intercept = (float(x) for x in (volume.dataobj.slope, volume.dataobj.inter))
        raw = _to_type((samples - intercept) / slope, stored)
        header.set_slope_inter(1, 0)  # nibabel then writes `raw` as it is; the true scale is put back below
        out = bytearray(kind(raw, volume.affine, header).to_bytes())
        number, at = header.structarr.dtype.fields["scl_slope"][:2]  # scl_inter follows it
        scale = np.array([slope, intercept], number.newbyteorder(header.endianness)).tobytes()
        out[at : at + len(scale)] = scale
        return gzip.compress(bytes(out), 6) if packed else bytes(out)

    words = f"{slices.shape[0]} slices of {volume.get_data_dtype()} NIfTI, window {low:g} to {high:g}"
    return Picture(_windowed(slices, low, high), encode, words)


def _nifti_window(header: "object", slices: np.ndarray) -> tuple[float, float]:
    """The header's display window, else all but the brightest thousandth, where vessels and coils shine.

    Of a sparse volume that thousandth is all there is to see: then the whole range.
    """
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if low < high:
        return low, high
    low, high = float(slices.min()), float(np.quantile(slices, 0.999))
    return low, high if low < high else float(slices.max())
