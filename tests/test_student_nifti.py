"""NIfTI volumes come back in their own type, scale and window."""

import gzip
import resource
from pathlib import Path

import nibabel
import nilearn
import numpy as np
import pytest
from processes import run

from student.images.files import read_picture
from student.images.picture import ImageFileError


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
    done = run(tmp_path, "-c", script, "scan.nii")  # another process: pytest takes what is logged away
    assert "cannot be decoded by nibabel: data code 0" in done.stdout and done.stderr == ""


def test_a_sparse_nifti_is_restored_too():
    stored = np.zeros((40, 40, 4), np.int16)
    stored[20, 20, 2] = 900
    picture = read_picture(nibabel.Nifti1Image(stored, np.eye(4)).to_bytes(), "scan.nii")
    assert picture.rgb.max() == 1, "seen, though all but a thousandth is empty"
    changed = nibabel.Nifti1Image.from_bytes(picture.encode(picture.rgb * np.float32(0.5)))
    assert changed.get_fdata()[20, 20, 2] == 450


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


@pytest.mark.parametrize("scale", [(0, 5), (np.nan, np.nan), (-2, 100), (0.001, -5)])
def test_any_scale_of_a_nifti_gives_its_samples_back(scale):
    stored = np.random.default_rng(0).integers(0, 2000, (9, 8, 3), dtype=np.int16)
    data = bytearray(nibabel.Nifti1Image(stored, np.eye(4)).to_bytes())
    data[112:120] = np.array(scale, np.float32).tobytes()
    picture = read_picture(bytes(data), "scan.nii")
    out = nibabel.Nifti1Image.from_bytes(picture.encode(picture.rgb))
    before = nibabel.Nifti1Image.from_bytes(bytes(data))
    assert np.array_equal(out.dataobj.get_unscaled(), stored) and np.array_equal(out.dataobj, before.dataobj)


def test_an_atlas_of_many_labels_is_no_picture_and_scans_are(tmp_path):
    centres = np.random.default_rng(0).uniform(0, 40, (120, 3))
    voxels = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1).reshape(-1, 3)
    nearest = ((voxels[:, None] - centres) ** 2).sum(-1).argmin(1).reshape(40, 40, 40)
    atlas = nibabel.Nifti1Image((1000 + nearest).astype(np.int16), np.eye(4))
    with pytest.raises(ImageFileError, match="a map of labels"):
        read_picture(atlas.to_bytes(), "atlas.nii.gz")
    data = Path(nilearn.__file__).parent / "datasets/data"
    for kind in ("t1", "gm", "wm"):  # 8 bits, smooth, and half of it background
        scan = data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        assert read_picture(scan.read_bytes(), scan.name).rgb.shape[0] == 189


def test_labels_are_told_by_their_numbers_and_a_volume_that_is_cut_off_is_none():
    labels = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 9, (20, 20, 9), dtype=np.uint8), np.eye(4))
    with pytest.raises(ImageFileError, match="a map of labels, not a picture"):
        read_picture(labels.to_bytes(), "labels.nii")
    noise = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(20, 20, 9)), np.eye(4)).to_bytes()
    with pytest.raises(ImageFileError, match="ended before the end"):
        read_picture(gzip.compress(noise)[:-9], "scan.nii.gz")
    members = gzip.compress(noise[:5000]) + gzip.compress(noise[5000:])
    assert np.array_equal(read_picture(members, "scan.nii.gz").rgb, read_picture(noise, "scan.nii").rgb), (
        "as bgzip does"
    )
