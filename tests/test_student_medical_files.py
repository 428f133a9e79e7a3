"""DICOM and NIfTI slices come back in their own type, range and window."""

import io

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from student.image_files import read_picture


def test_dicom_keeps_depth_window_and_what_lies_outside_it():
    with open(get_testdata_file("CT_small.dcm"), "rb") as file:
        data = file.read()
    before = pydicom.dcmread(io.BytesIO(data))
    before.WindowCenter, before.WindowWidth = 40, 400
    low = (40 - 200 - before.RescaleIntercept) / before.RescaleSlope
    out = io.BytesIO()
    before.save_as(out)
    picture = read_picture(out.getvalue(), "scan.dcm")
    assert picture.rgb.shape == (1, 128, 128, 3)
    same = pydicom.dcmread(io.BytesIO(picture.encode(picture.rgb)))
    assert np.array_equal(same.pixel_array, before.pixel_array)
    brighter = pydicom.dcmread(io.BytesIO(picture.encode(picture.rgb + np.float32(0.1))))
    changed = brighter.pixel_array.astype(int) - before.pixel_array
    inside = (before.pixel_array >= low) & (before.pixel_array <= low + 400)
    assert inside.any() and not inside.all()
    assert set(changed[inside]) == {40}, "0.1 of a window of 400"
    assert set(changed[~inside]) == {0}
    assert (brighter.WindowCenter, brighter.WindowWidth, brighter.BitsStored) == (40, 400, before.BitsStored)
    assert brighter.SOPInstanceUID != before.SOPInstanceUID and brighter.ImageType[0] == "DERIVED"
    assert brighter.PatientID == before.PatientID


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_keeps_type_scale_and_affine(tmp_path, suffix):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    stored = np.random.default_rng(0).integers(0, 2048, (9, 8, 5), dtype=np.uint16)
    volume = nibabel.Nifti1Image(stored, affine)
    path = tmp_path / f"scan{suffix}"
    volume.header["cal_min"], volume.header["cal_max"] = 0, 500
    volume.header.set_data_dtype(np.int16)
    nibabel.Nifti1Image(stored * 0.5 - 10, affine, volume.header).to_filename(path)
    picture = read_picture(path.read_bytes(), path.name)
    assert picture.rgb.shape == (5, 9, 8, 3), "one slice after the other"
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / path.name
    out.write_bytes(picture.encode(picture.rgb + np.float32(0.1)))
    loaded = nibabel.load(out)
    assert loaded.get_data_dtype() == np.int16 and np.array_equal(loaded.affine, affine)
    before = nibabel.load(path)
    assert before.dataobj.slope != 1 and before.dataobj.inter != 0, "nibabel chose a scale of its own for the type"
    assert (loaded.dataobj.slope, loaded.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter)
    most = 32767 * before.dataobj.slope + before.dataobj.inter
    values = before.get_fdata()
    expected = np.minimum(
        values + 50 * ((values >= 0) & (values <= 500)), most
    )  # saturated at the type's end, never wrapped around
    assert np.allclose(loaded.get_fdata(), expected, atol=before.dataobj.slope)
