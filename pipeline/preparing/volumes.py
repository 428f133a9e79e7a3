"""Medical volumes → slices of 16 bits, with a stated window."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.preparing.config import PrepareConfig
from student.images.dicom import open_dicom, padding_of, values_of
from student.images.formats import DICOM, NIFTI
from student.images.nifti import open_nifti
from student.images.picture import ImageFileError
from student.images.sample_values import find_fill

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
        volume, inverted = _dicom(path, config.window is None) if dicom else (_nifti(path), False)
    except VolumeError:
        raise
    except ImageFileError as error:
        raise VolumeError(f"{path}: {error}") from None
    except Exception as error:  # the readers raise whatever the broken header leads to
        raise VolumeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    low, high = config.window or (float(np.nanmin(volume)), float(np.nanmax(volume)))
    if not high > low:
        raise VolumeError(f"{path}: the window {low} ... {high} is empty")
    axis = config.axis
    if dicom and axis != 2:
        raise VolumeError(f"{path}: a DICOM file holds planes as they were scanned; set prepare.axis=2")
    for number in range(0, volume.shape[axis], config.step):
        plane = np.take(volume, number, axis)
        scaled = np.clip((plane - low) / (high - low), 0, 1)
        if (scaled > 0).mean() >= config.min_foreground:
            scaled = np.nan_to_num(1 - scaled if inverted else scaled)
            upright = scaled if dicom else np.rot90(scaled)
            yield number, np.round(upright * 65535).astype(np.uint16)


def _nifti(path: Path) -> np.ndarray:
    """float32 [x, y, z] in RAS order, whatever order the file has, gaps NaN; of a series the first volume, of a plane
    one slice."""
    import nibabel

    volume = np.array(nibabel.as_closest_canonical(open_nifti(path.read_bytes())).dataobj, dtype=np.float32)
    volume[~np.isfinite(volume)] = np.nan
    if (fill := find_fill(volume[np.isfinite(volume)])) is not None:
        volume[volume == fill] = np.nan
    volume = np.atleast_3d(volume)
    return volume.reshape(*volume.shape[:3], -1)[..., 0]


def _dicom(path: Path, needs_window: bool) -> tuple[np.ndarray, bool]:
    """float32 [rows, columns, frames] in physical values, padding NaN; and whether small ones are bright."""
    file = open_dicom(path.read_bytes())
    if file.get("Modality") == "CT" and needs_window:
        # Its own extremes for each would give the two doses of a pair different brightness.
        raise VolumeError(f"{path}: CT: name the window in HU, such as --set 'prepare.window=[-160, 240]'")
    stored, values, _ = values_of(file)
    low, high = padding_of(file, stored) or (1, 0)
    values[(stored >= low) & (stored <= high)] = np.nan
    return np.moveaxis(values, 0, -1).astype(np.float32), file.PhotometricInterpretation == "MONOCHROME1"
