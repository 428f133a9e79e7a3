"""DICOM and NIfTI slices come back in their own type, range and window."""

import io
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from student.images.files import read_picture
from student.images.medical import own_suffix
from student.images.picture import ImageFileError

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("name", ["MR_small_bigendian.dcm", "MR_small.dcm", "MR_small_RLE.dcm"])
def test_dicom_of_either_byte_order_comes_back(name):
    with open(get_testdata_file(name), "rb") as file:
        data = file.read()
    before = pydicom.dcmread(io.BytesIO(data))
    picture = read_picture(data, name)
    after = pydicom.dcmread(io.BytesIO(picture.encode(picture.rgb)))
    assert np.array_equal(after.pixel_array, before.pixel_array) and after.PatientID == before.PatientID
    assert after.file_meta.TransferSyntaxUID.is_little_endian == before.file_meta.TransferSyntaxUID.is_little_endian


def test_dose_grids_are_no_pictures():
    with open(get_testdata_file("rtdose.dcm"), "rb") as file, pytest.raises(ImageFileError, match="radiation doses"):
        read_picture(file.read(), "rtdose.dcm")


def test_a_medical_output_is_known_by_the_content_of_its_input():
    with open(get_testdata_file("CT_small.dcm"), "rb") as file:
        data = file.read()
    for name, suffix in (("standard input", ".dcm"), ("IM0001", ".dicom"), ("scan.dcm", "")):
        assert own_suffix(data, name, suffix) == ""
    with pytest.raises(ImageFileError, match=r"DICOM file keeps its own format; name the output \*.dcm"):
        own_suffix(data, "IM0001", ".png")
    with pytest.raises(ImageFileError, match=r"name the output \*.nii.gz"):
        own_suffix(b"\x1f\x8b", "scan.nii.gz", ".png")
    assert own_suffix(b"\x1f\x8b", "scan.nii.gz", ".gz") == "" and own_suffix(b"a photo", "a.jpg", ".png") == ".png"


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_of_the_second_version(order):
    header = nibabel.Nifti2Header(endianness=order)
    stored = np.random.default_rng(0).integers(0, 2048, (9, 8, 3), dtype=np.int16)
    volume = nibabel.Nifti2Image(stored, np.diag([2.0, 3.0, 4.0, 1.0]), header)
    volume.header.set_data_dtype(np.int16)
    volume.header.set_slope_inter(0.5, -10)
    data = volume.to_bytes()
    picture = read_picture(data, "scan.nii")
    before, after = (nibabel.Nifti2Image.from_bytes(x) for x in (data, picture.encode(picture.rgb)))
    assert (after.dataobj.slope, after.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter) == (0.5, -10)
    assert after.header.endianness == order and np.array_equal(after.affine, before.affine)
    assert np.array_equal(after.get_fdata(), before.get_fdata())


def test_a_damaged_nifti_is_one_reason_and_nothing_on_standard_error(tmp_path):
    data = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes()
    (tmp_path / "scan.nii").write_bytes(data[:70] + bytes(2) + data[72:])  # the code of the samples' type
    script = """if True:
        import sys
        from student.images.files import read_picture
        from student.images.picture import ImageFileError
        try:
            read_picture(open(sys.argv[1], "rb").read(), "scan.nii")
        except ImageFileError as error:
            print(error)
    """
    done = subprocess.run(  # another process: pytest takes what is logged away
        [sys.executable, "-c", script, tmp_path / "scan.nii"], capture_output=True, text=True, cwd=ROOT
    )
    assert "cannot be decoded by nibabel: data code 0" in done.stdout and done.stderr == ""


def test_a_sparse_nifti_is_restored_too():
    stored = np.zeros((40, 40, 4), np.int16)
    stored[20, 20, 2] = 900
    picture = read_picture(nibabel.Nifti1Image(stored, np.eye(4)).to_bytes(), "scan.nii")
    assert picture.rgb.max() == 1, "seen, though all but a thousandth is empty"
    changed = nibabel.Nifti1Image.from_bytes(picture.encode(picture.rgb * np.float32(0.5)))
    assert changed.get_fdata()[20, 20, 2] == 450
