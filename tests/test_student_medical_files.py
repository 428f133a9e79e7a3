"""DICOM and NIfTI slices come back in their own type, range and window."""

import gzip
import io
import resource
import subprocess
import sys
import zlib
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
    assert same.SeriesInstanceUID == brighter.SeriesInstanceUID != before.SeriesInstanceUID, "a series of its own"
    again = pydicom.dcmread(io.BytesIO(picture.encode(picture.rgb + np.float32(0.1))))
    assert (
        again.SOPInstanceUID != same.SOPInstanceUID
        and again.SOPInstanceUID == again.file_meta.MediaStorageSOPInstanceUID
    )


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


def slice_of(samples: np.ndarray, **changes) -> bytes:
    """A CT slice with these samples, written with tags that are changed, or empty (None)."""
    scan, out = pydicom.dcmread(get_testdata_file("CT_small.dcm")), io.BytesIO()
    scan.Rows, scan.Columns = samples.shape[-2:]
    scan.NumberOfFrames = len(samples) if samples.ndim == 3 else 1
    scan.PixelRepresentation, scan.PixelData = int(samples.dtype.kind == "i"), samples.tobytes()
    scan.RescaleSlope, scan.RescaleIntercept, scan.PixelPaddingValue = 1, 0, None
    for name, value in changes.items():
        setattr(scan, name, value)
        if name == "PixelPaddingRangeLimit":
            scan[name].VR = "SS"
    scan.save_as(out)
    return out.getvalue()


TISSUE = np.random.default_rng(0).integers(-200, 300, (40, 50), dtype=np.int16)


def changed(data: bytes) -> np.ndarray:
    """What a network adds that brightens by a tenth of the window."""
    picture = read_picture(data, "scan.dcm")
    after, before = (pydicom.dcmread(io.BytesIO(x)) for x in (picture.encode(picture.rgb + np.float32(0.1)), data))
    return after.pixel_array.astype(int) - before.pixel_array


@pytest.mark.parametrize("tags", [{"PixelPaddingValue": -2000}, {"PixelPaddingValue": -1999}, {}])
def test_padding_and_metal_spoil_no_sample(tags):
    padded = TISSUE.copy()
    padded[:9], padded[20, 20] = (-2000 if tags else -32768), 30000
    limit = {"PixelPaddingRangeLimit": -2500} if tags.get("PixelPaddingValue") == -1999 else {}
    change = changed(slice_of(padded, **tags, **limit))
    assert (change[:9] == 0).all() and change[20, 20] == 0
    assert 40 < np.median(change[9:]) < 110, "a tenth of about 500"


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleIntercept": None}, {"RescaleSlope": None}, {"ImageType": "ORIGINAL"}, {"ImageType": None},
        {"WindowCenter": 5000, "WindowWidth": 10},
    ],
)  # fmt: skip
def test_odd_tags_are_no_obstacle(tags):
    tags = {"WindowCenter": 50, "WindowWidth": 500} | tags
    assert np.median(changed(slice_of(TISSUE, **tags))) == 50, "a window without any sample is none"


def test_a_negative_slope_turns_the_window_round():
    window = {"WindowCenter": -50, "WindowWidth": 600}
    change = changed(slice_of(TISSUE, RescaleSlope=-1, **window))
    assert set(change[(TISSUE >= -250) & (TISSUE <= 350)]) == {-60}, "brighter is a smaller sample"


def test_windows_of_enhanced_files_and_files_without_meta():
    item, holder = pydicom.Dataset(), pydicom.Dataset()
    item.WindowCenter, item.WindowWidth = 50, 600
    holder.FrameVOILUTSequence = pydicom.Sequence([item])
    spiked = np.stack([TISSUE] * 3)
    spiked[:, 0, 0] = 30000
    change = changed(slice_of(spiked, SharedFunctionalGroupsSequence=pydicom.Sequence([holder])))
    assert change[1, 0, 0] == 0 and np.median(change) == 60
    scan, out = pydicom.dcmread(io.BytesIO(slice_of(TISSUE))), io.BytesIO()
    bare = pydicom.Dataset({key: value for key, value in scan.items()})
    bare.save_as(out, implicit_vr=True, little_endian=True)
    picture = read_picture(out.getvalue(), "scan.dcm")
    after = pydicom.dcmread(io.BytesIO(picture.encode(picture.rgb)))
    assert np.array_equal(after.pixel_array, TISSUE)


def test_nan_in_a_nifti_stays_and_label_maps_are_no_pictures():
    values = np.random.default_rng(0).uniform(5, 45, (9, 8, 3)).astype(np.float32)
    values[2:4] = np.nan
    volume = nibabel.Nifti1Image(values, np.eye(4))
    picture = read_picture(volume.to_bytes(), "scan.nii")
    out = nibabel.Nifti1Image.from_bytes(picture.encode(picture.rgb + np.float32(0.1))).get_fdata()
    assert np.array_equal(np.isnan(out), np.isnan(values)) and np.nanmedian(out - values) == pytest.approx(4, abs=0.1)
    volume.header.set_intent("label")
    with pytest.raises(ImageFileError, match="a map of labels"):
        read_picture(volume.to_bytes(), "scan.nii")


def test_a_packed_volume_is_no_larger_than_its_header_says():
    data = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes()
    bomb = gzip.compress(data + bytes(2**27))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageFileError, match="unpacks to more than its header says"):
        read_picture(bomb, "scan.nii.gz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    large = bytearray(data)
    large[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()
    with pytest.raises(ImageFileError, match="GB are free"):
        read_picture(gzip.compress(bytes(large)), "scan.nii.gz")


def enhanced(frames: np.ndarray, *scales: float, shared: bool) -> bytes:
    """Frames whose scale, and a window of 1000 stored samples around 500, are in their functional groups alone."""
    groups = []
    for scale in scales:
        group, values, window = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        values.RescaleSlope, values.RescaleIntercept = scale, -1024
        window.WindowCenter, window.WindowWidth = 500 * scale - 1024, 1000 * scale
        group.PixelValueTransformationSequence = pydicom.Sequence([values])
        group.FrameVOILUTSequence = pydicom.Sequence([window])
        groups.append(group)
    name = f"{'Shared' if shared else 'PerFrame'}FunctionalGroupsSequence"
    return slice_of(frames, RescaleSlope=None, RescaleIntercept=None, **{name: pydicom.Sequence(groups)})


def test_frames_are_scaled_as_their_groups_say():
    frames = np.stack([TISSUE + 500] * 2).astype(np.int16)
    assert set(changed(enhanced(frames, 2, shared=True)).ravel()) == {100}, "a tenth of the window in stored samples"
    change = changed(enhanced(frames, 2, 1, shared=False))
    assert set(change[0].ravel()) == {100} and change[1].max() == 200, "the first window, in the second's own scale"


def test_padding_that_a_program_wrote_without_its_sign():
    padded = TISSUE.copy()
    padded[:9] = -2000
    scan = pydicom.dcmread(io.BytesIO(slice_of(padded, WindowCenter=50, WindowWidth=10000)))
    scan["PixelPaddingValue"].VR, scan["PixelPaddingValue"].value = "US", 63536
    out = io.BytesIO()
    scan.save_as(out)
    seen = read_picture(out.getvalue(), "scan.dcm").rgb[0]
    assert np.allclose(seen[:9], seen[9:].mean(), atol=1e-3)


def test_a_deflated_file_is_read_unless_it_is_a_bomb():
    scan, out = pydicom.dcmread(io.BytesIO(slice_of(TISSUE))), io.BytesIO()
    scan.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    scan.save_as(out)
    data = out.getvalue()
    assert set(changed(data).ravel()) <= set(range(51))
    begin = 144 + int.from_bytes(data[140:144], "little")
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = data[:begin] + pack.compress(zlib.decompress(data[begin:], -15) + bytes(2**28)) + pack.flush()
    with pytest.raises(ImageFileError, match="of more than 256 MB: unpack it first"):
        read_picture(bomb, "scan.dcm")


@pytest.mark.parametrize("scale", [(0, 5), (np.nan, np.nan), (-2, 100), (0.001, -5)])
def test_any_scale_of_a_nifti_gives_its_samples_back(scale):
    stored = np.random.default_rng(0).integers(0, 2000, (9, 8, 3), dtype=np.int16)
    data = bytearray(nibabel.Nifti1Image(stored, np.eye(4)).to_bytes())
    data[112:120] = np.array(scale, np.float32).tobytes()
    picture = read_picture(bytes(data), "scan.nii")
    out = nibabel.Nifti1Image.from_bytes(picture.encode(picture.rgb))
    before = nibabel.Nifti1Image.from_bytes(bytes(data))
    assert np.array_equal(out.dataobj.get_unscaled(), stored) and np.array_equal(out.dataobj, before.dataobj)


def test_labels_are_told_by_their_numbers_and_a_volume_that_is_cut_off_is_none():
    labels = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 9, (20, 20, 9), dtype=np.uint8), np.eye(4))
    with pytest.raises(ImageFileError, match="fewer than 16 different whole numbers: a map of labels"):
        read_picture(labels.to_bytes(), "labels.nii")
    noise = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(20, 20, 9)), np.eye(4)).to_bytes()
    with pytest.raises(ImageFileError, match="ended before the end"):
        read_picture(gzip.compress(noise)[:-9], "scan.nii.gz")
    members = gzip.compress(noise[:5000]) + gzip.compress(noise[5000:])
    assert np.array_equal(read_picture(members, "scan.nii.gz").rgb, read_picture(noise, "scan.nii").rgb), (
        "as bgzip does"
    )
