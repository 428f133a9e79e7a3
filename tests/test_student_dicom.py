"""DICOM slices come back in their own type, range and window."""

import io
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from student.images.files import read_picture
from student.images.medical import own_suffix
from student.images.picture import ImageFileError


def stored(name: str) -> bytes:
    """A file that pydicom ships."""
    return Path(get_testdata_file(name)).read_bytes()


def scan_of(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def saved(scan: pydicom.Dataset, **options) -> bytes:
    scan.save_as(out := io.BytesIO(), **options)
    return out.getvalue()


def test_dicom_keeps_depth_window_and_what_lies_outside_it():
    before = scan_of(stored("CT_small.dcm"))
    before.WindowCenter, before.WindowWidth = 40, 400
    low = (40 - 200 - before.RescaleIntercept) / before.RescaleSlope
    picture = read_picture(saved(before), "scan.dcm")
    assert picture.rgb.shape == (1, 128, 128, 3)
    same = scan_of(picture.encode(picture.rgb))
    assert np.array_equal(same.pixel_array, before.pixel_array)
    brighter = scan_of(picture.encode(picture.rgb + np.float32(0.1)))
    changed = brighter.pixel_array.astype(int) - before.pixel_array
    inside = (before.pixel_array >= low) & (before.pixel_array <= low + 400)
    assert inside.any() and not inside.all()
    assert set(changed[inside]) == {40}, "0.1 of a window of 400"
    assert set(changed[~inside]) == {0}
    assert (brighter.WindowCenter, brighter.WindowWidth, brighter.BitsStored) == (40, 400, before.BitsStored)
    assert brighter.SOPInstanceUID != before.SOPInstanceUID and brighter.ImageType[0] == "DERIVED"
    assert brighter.PatientID == before.PatientID
    assert same.SeriesInstanceUID == brighter.SeriesInstanceUID != before.SeriesInstanceUID, "a series of its own"
    again = scan_of(picture.encode(picture.rgb + np.float32(0.1)))
    assert (
        again.SOPInstanceUID != same.SOPInstanceUID
        and again.SOPInstanceUID == again.file_meta.MediaStorageSOPInstanceUID
    )


@pytest.mark.parametrize("name", ["MR_small_bigendian.dcm", "MR_small.dcm", "MR_small_RLE.dcm"])
def test_dicom_of_either_byte_order_comes_back(name):
    before, picture = scan_of(stored(name)), read_picture(stored(name), name)
    after = scan_of(picture.encode(picture.rgb))
    assert np.array_equal(after.pixel_array, before.pixel_array) and after.PatientID == before.PatientID
    assert after.file_meta.TransferSyntaxUID.is_little_endian == before.file_meta.TransferSyntaxUID.is_little_endian


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_what_archives_compress_without_loss_comes_back(tmp_path, syntax):
    import gdcm

    source = get_testdata_file("CT_small.dcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(source)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    assert writer.Write()
    data = (tmp_path / "packed.dcm").read_bytes()
    assert scan_of(data).file_meta.TransferSyntaxUID.is_compressed
    picture, plain = read_picture(data, "packed.dcm"), read_picture(Path(source).read_bytes(), "plain.dcm")
    assert np.array_equal(picture.rgb, plain.rgb)
    back = scan_of(picture.encode(picture.rgb))
    assert np.array_equal(back.pixel_array, pydicom.dcmread(source).pixel_array)


def test_a_medical_output_is_known_by_the_content_of_its_input():
    data = stored("CT_small.dcm")
    for name, suffix in (("standard input", ".dcm"), ("IM0001", ".dicom"), ("scan.dcm", "")):
        assert own_suffix(data, name, suffix) == ""
    with pytest.raises(ImageFileError, match=r"DICOM file keeps its own format; name the output \*.dcm"):
        own_suffix(data, "IM0001", ".png")
    with pytest.raises(ImageFileError, match=r"name the output \*.nii.gz"):
        own_suffix(b"\x1f\x8b", "scan.nii.gz", ".png")
    assert own_suffix(b"\x1f\x8b", "scan.nii.gz", ".gz") == "" and own_suffix(b"a photo", "a.jpg", ".png") == ".png"


def slice_of(samples: np.ndarray, **changes) -> bytes:
    """A CT slice with these samples, written with tags that are changed, or empty (None)."""
    scan = scan_of(stored("CT_small.dcm"))
    scan.Rows, scan.Columns = samples.shape[-2:]
    scan.NumberOfFrames = len(samples) if samples.ndim == 3 else 1
    scan.PixelRepresentation, scan.PixelData = int(samples.dtype.kind == "i"), samples.tobytes()
    scan.RescaleSlope, scan.RescaleIntercept, scan.PixelPaddingValue = 1, 0, None
    for name, value in changes.items():
        setattr(scan, name, value)
        if name == "PixelPaddingRangeLimit":
            scan[name].VR = "SS"
    return saved(scan)


TISSUE = np.random.default_rng(0).integers(-200, 300, (40, 50), dtype=np.int16)


def changed(data: bytes) -> np.ndarray:
    """What a network adds that brightens by a tenth of the window."""
    picture = read_picture(data, "scan.dcm")
    after, before = (scan_of(x) for x in (picture.encode(picture.rgb + np.float32(0.1)), data))
    return after.pixel_array.astype(int) - before.pixel_array


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (stored("rtdose.dcm"), "radiation doses"),
        (slice_of(TISSUE, PhotometricInterpretation="PALETTE COLOR"), "a colour DICOM file .PALETTE COLOR."),
        (slice_of(TISSUE, BitsAllocated=1), "not an image but a mask"),
    ],
)
def test_what_is_no_gray_picture_is_told(data, message):
    with pytest.raises(ImageFileError, match=message):
        read_picture(data, "scan.dcm")


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
    bare = pydicom.Dataset({key: value for key, value in scan_of(slice_of(TISSUE)).items()})
    picture = read_picture(saved(bare, implicit_vr=True, little_endian=True), "scan.dcm")
    assert np.array_equal(scan_of(picture.encode(picture.rgb)).pixel_array, TISSUE)


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
    scan = scan_of(slice_of(padded, WindowCenter=50, WindowWidth=10000))
    scan["PixelPaddingValue"].VR, scan["PixelPaddingValue"].value = "US", 63536
    seen = read_picture(saved(scan), "scan.dcm").rgb[0]
    assert np.allclose(seen[:9], seen[9:].mean(), atol=1e-3)


def test_a_deflated_file_is_read_unless_it_is_a_bomb():
    scan = scan_of(slice_of(TISSUE))
    scan.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data = saved(scan)
    assert set(changed(data).ravel()) <= set(range(51))
    begin = 144 + int.from_bytes(data[140:144], "little")
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = data[:begin] + pack.compress(zlib.decompress(data[begin:], -15) + bytes(2**28)) + pack.flush()
    with pytest.raises(ImageFileError, match="of more than 256 MB: unpack it first"):
        read_picture(bomb, "scan.dcm")
