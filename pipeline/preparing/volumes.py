"""Medical volumes → slices of 16 bits, with a stated window."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.preparing.config import PrepareConfig
from student.images.formats import DICOM, NIFTI
from student.images.medical import NOT_PICTURES

VOLUMES = (*NIFTI, *DICOM)


class VolumeError(ValueError):
    """A volume that cannot be read; names the file and the reason."""


def slices_of(path: Path, config: PrepareConfig) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint16 [H, W]) of every slice with enough in it; rows run from the top of the picture.

    Values are the file's physical ones (rescale slope and intercept applied: Hounsfield units in CT), clipped to
    `window` and mapped to 0 ... 65535. Raises `VolumeError`.
    """
    dicom = not path.name.lower().endswith(NIFTI)
    try:
        volume = _dicom(path, config.window is None) if dicom else _nifti(path)
    except VolumeError:
        raise
    except Exception as error:  # the readers raise whatever the broken header leads to
        raise VolumeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    low, high = config.window or (float(volume.min()), float(volume.max()))
    if not high > low:
        raise VolumeError(f"{path}: the window {low} ... {high} is empty")
    axis = config.axis
    if dicom and axis != 2:
        raise VolumeError(f"{path}: a DICOM file holds planes as they were scanned; set prepare.axis=2")
    for number in range(0, volume.shape[axis], config.step):
        plane = np.take(volume, number, axis)
        scaled = np.clip((plane - low) / (high - low), 0, 1)
        if (scaled > 0).mean() >= config.min_foreground:
            upright = scaled if dicom else np.rot90(scaled)
            yield number, np.round(upright * 65535).astype(np.uint16)


def _nifti(path: Path) -> np.ndarray:
    """float32 [x, y, z] in RAS order, whatever order the file has; the first volume of a series."""
    import nibabel

    volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj, dtype=np.float32)
    return volume if volume.ndim == 3 else volume.reshape(*volume.shape[:3], -1)[..., 0]


def _dicom(path: Path, needs_window: bool) -> np.ndarray:
    """float32 [rows, columns, frames]."""
    import pydicom

    file = pydicom.dcmread(path)
    modality = str(file.get("Modality", ""))
    if modality in NOT_PICTURES:
        raise VolumeError(f"{path}: {NOT_PICTURES[modality]} ({modality}), no picture")
    if modality == "CT" and needs_window:
        # Its own extremes for each would give the two doses of a pair different brightness.
        raise VolumeError(f"{path}: CT: name the window in HU, such as --set 'prepare.window=[-160, 240]'")
    slope, intercept = (file.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    pixels = file.pixel_array.astype(np.float32) * float(1 if slope in (None, "") else slope)
    pixels += float(0 if intercept in (None, "") else intercept)
    return pixels[..., None] if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1)
