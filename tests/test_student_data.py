"""Training pairs: aligned crops, seeded degradations, priors by the clean image's hash, caches."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import toy_training as toy
from torch.utils.data import DataLoader

from student.data.cache import MappedImages, decode, open_images
from student.data.dataset import PairDataset, whole
from student.data.degradations import KINDS, DegradationSpec
from student.data.pairs import TrainDataError, data_fingerprint, read_pairs, read_release
from student.data.sampler import BalancedBatches, Draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(folder):
    return read_pairs(folder / "index.parquet", "train")


def row_of(pairs, dataset: str) -> int:
    return int(pairs.by_dataset[dataset][0])


@pytest.mark.parametrize("patch_size", [8, 16])
def test_crops_of_a_stored_pair_are_aligned_under_every_flip_and_turn(folder, pairs, patch_size):
    dataset = PairDataset(pairs, None, patch_size, seed=0)
    row = row_of(pairs, "natural_deraining")  # its lq is gt * 0.6 + 0.2
    for epoch in range(20):
        lq, gt = dataset.crop(Draw(row, epoch))
        assert lq.shape == gt.shape == (3, patch_size, patch_size)
        np.testing.assert_allclose(lq, gt * 0.6 + 0.2, atol=1.5 / 255)


def test_a_crop_is_a_function_of_seed_image_dataset_and_epoch(folder, pairs):
    row, other = row_of(pairs, "natural_denoising"), row_of(pairs, "natural_deraining")
    one, again, reseeded = (PairDataset(pairs, None, 16, seed=seed) for seed in (0, 0, 1))
    before = one.crop(Draw(row, 3))
    one.crop(Draw(other, 1))
    for a, b in ((before, one.crop(Draw(row, 3))), (before, again.crop(Draw(row, 3)))):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(before, one.crop(Draw(row, 4)))
    assert not np.array_equal(before, reseeded.crop(Draw(row, 3)))


def test_noise_on_the_fly_has_the_strength_that_the_index_asks_for(folder, pairs):
    dataset = PairDataset(pairs, None, 16, seed=0)
    row = row_of(pairs, "natural_denoising")
    noise = np.concatenate(
        [(lq - gt)[(gt > 0.3) & (gt < 0.7)] for lq, gt in (dataset.crop(Draw(row, e)) for e in range(60))]
    )
    assert noise.std() * 255 == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_every_degradation_can_be_made_on_the_fly(pairs, kind):
    row = row_of(pairs, "natural_denoising")
    degradations = pairs.degradation.copy()
    degradations[row] = DegradationSpec(kind=kind).model_dump_json()
    dataset = PairDataset(replace(pairs, degradation=degradations), None, 16, seed=0)
    lq, gt = dataset.crop(Draw(row, 0))
    assert lq.shape == gt.shape and lq.dtype == np.float32 and lq.min() >= 0 and lq.max() <= 1
    changed = [np.abs(np.subtract(*dataset.crop(Draw(row, epoch)))).mean() for epoch in range(8)]
    assert (np.mean(changed) > 1e-4) == (kind != "identity")  # a crop of 16 pixels may lie between all drops of rain
    np.testing.assert_array_equal(dataset.crop(Draw(row, 0))[0], lq)
    whole_lq, whole_gt = dataset.whole_image(row)
    assert whole_lq.shape == whole_gt.shape
    np.testing.assert_array_equal(dataset.whole_image(row)[0], whole_lq)


def test_an_image_smaller_than_the_patch_is_mirrored(folder, pairs):
    lq, gt = PairDataset(pairs, None, 40, seed=0, augment=False).crop(Draw(row_of(pairs, "natural_deraining"), 0))
    image = decode(pairs.gt_path[row_of(pairs, "natural_deraining")]).astype(np.float32) / 255
    height, width = image.shape[1:]
    np.testing.assert_array_equal(gt[:, :height, :width], image)
    np.testing.assert_array_equal(gt[:, :height, width], image[:, :, width - 1])


def test_priors_are_joined_by_hash_and_missing_ones_are_marked(folder, pairs, tmp_path):
    wanted = {sha256: np.full(toy.DIM, 1.0 + i) for i, sha256 in enumerate(sorted(set(pairs.gt_sha256)))}
    missing = pairs.gt_sha256[0]
    toy.write_priors(tmp_path / "release", {k: v for k, v in wanted.items() if k != missing})
    dataset = PairDataset(pairs, read_release(tmp_path / "release"), 8, seed=0)
    batch = dataset.__getitems__([Draw(row, 0) for row in range(len(pairs))])
    assert batch["has_prior"].tolist() == [sha256 != missing for sha256 in pairs.gt_sha256]
    found = batch["has_prior"].numpy()
    np.testing.assert_allclose(batch["prior"].numpy()[found], toy.DIM**-0.5, atol=1e-3)


def test_labels_are_numbers_of_the_sorted_names(folder, pairs):
    batch = PairDataset(pairs, None, 8, seed=0).__getitems__([Draw(row, 0) for row in range(len(pairs))])
    for pool in ("task", "domain"):
        names, _ = pairs.labels[pool]
        assert [names[number] for number in batch[pool]] == list(getattr(pairs, pool))


@pytest.mark.parametrize("mode", ["memory", "memmap"])
def test_caches_give_the_pixels_of_the_files(pairs, tmp_path, mode):
    cache = open_images(mode, pairs, str(tmp_path))
    again = pickle.loads(pickle.dumps(cache))  # as for a worker
    for path in pairs.files:
        for images in (cache, again, again):
            np.testing.assert_array_equal(images[path], decode(path))
    assert len(list(tmp_path.glob("*.npy"))) == (len(pairs.files) if mode == "memmap" else 0)


def test_a_mapped_image_follows_its_file(tmp_path):
    for value in (0, 1):
        toy.save_png(tmp_path / "a.png", np.full((4, 4, 3), value))
        assert (MappedImages({}, str(tmp_path / "cache"))[str(tmp_path / "a.png")] == 255 * value).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_batches_that_the_process_itself_gives(folder, pairs, workers):
    dataset = PairDataset(pairs, read_release(folder / "release"), 8, seed=0)
    sampler = BalancedBatches(pairs.by_dataset, 6, 0, last=4)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=whole, num_workers=workers)
    for draws, batch in zip(sampler, loader, strict=True):
        direct = dataset.__getitems__(draws)
        assert all((batch[name] == direct[name]).all() for name in direct)


def test_rows_that_are_not_ok_or_of_another_split_are_not_read(folder, tmp_path):
    table = parquet.read_table(folder / "index.parquet").to_pylist()
    table[0]["status"] = "unreadable"
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "index.parquet")
    expected = sorted(row["gt_path"] for row in table[1:] if row["split"] == "train")
    assert sorted(read_pairs(tmp_path / "index.parquet", "train").gt_path) == expected


def test_the_fingerprint_notices_every_input(folder, tmp_path):
    toy.make_data(tmp_path)

    def fingerprint():
        return data_fingerprint(read_pairs(tmp_path / "index.parquet", "train"), read_release(tmp_path / "release"))

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    pairs = read_pairs(tmp_path / "index.parquet", "train")
    lq = next(path for path in pairs.lq_path if path)
    pixels = decode(lq).transpose(1, 2, 0).astype(np.float64) / 255
    pixels[0, 0, 0] = 1 - pixels[0, 0, 0]  # one sample of one pixel, under the same name
    toy.save_png(type(tmp_path)(lq), pixels)
    seen.append(fingerprint())
    rows = parquet.read_table(tmp_path / "index.parquet").to_pylist()
    target = next(row for row in rows if row["degradation"] and row["split"] == "train")
    target["degradation"] = json.dumps({"kind": "gaussian_noise", "sigma": 15})
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "index.parquet")
    seen.append(fingerprint())
    toy.write_priors(tmp_path / "release", {sha256: np.arange(1.0, 33) for sha256 in set(pairs.gt_sha256)})
    seen.append(fingerprint())
    assert len(set(seen)) == 4


def test_files_that_went_missing_or_bad_are_named_with_the_remedy(pairs, tmp_path):
    for path, words in ((tmp_path / "none.png", "No such file"), (tmp_path / "bad.png", "not an image")):
        if words == "not an image":
            path.write_bytes(b"nothing")
        with pytest.raises(TrainDataError, match=f"{path.name}: .*{words}.*pipeline.index"):
            decode(str(path))
    with pytest.raises(TrainDataError, match="none.parquet: no such index; run python -m pipeline.index"):
        read_pairs(tmp_path / "none.parquet", "train")
    with pytest.raises(TrainDataError, match="pipeline.embed"):
        read_release(tmp_path / "none")


def test_a_crop_is_degraded_as_the_image_around_it_would_be(pairs):
    """An enlarged crop equals the same place of the enlarged image: nothing is mirrored at the crop's own border."""
    row = row_of(pairs, "natural_denoising")
    degradations = pairs.degradation.copy()
    degradations[row] = DegradationSpec(kind="bicubic", scale=2).model_dump_json()
    dataset = PairDataset(replace(pairs, degradation=degradations), None, 16, seed=0, augment=False)
    whole_lq, whole_gt = dataset.whole_image(row)
    places = 0
    for epoch in range(40):
        lq, gt = dataset.crop(Draw(row, epoch))
        for top in range(0, whole_gt.shape[1] - 15, 2):  # even places: there both are halved in the same pairs
            for left in range(0, whole_gt.shape[2] - 15, 2):
                if np.array_equal(whole_gt[:, top : top + 16, left : left + 16], gt):
                    np.testing.assert_allclose(lq, whole_lq[:, top : top + 16, left : left + 16], atol=1e-6)
                    places += 1
    assert places


def test_another_tone_keeps_a_clean_pair_clean(pairs):
    row = row_of(pairs, "natural_denoising")
    degradations = pairs.degradation.copy()
    degradations[row] = DegradationSpec(kind="identity", tone=1.0).model_dump_json()
    dataset = PairDataset(replace(pairs, degradation=degradations), None, 16, seed=0)
    crops = [dataset.crop(Draw(row, epoch)) for epoch in range(6)]
    assert all(np.array_equal(lq, gt) and 0 <= gt.min() <= gt.max() <= 1 for lq, gt in crops)
    assert np.std([gt.mean() for _, gt in crops]) > 0.02, "the brightness varies"
    np.testing.assert_array_equal(dataset.whole_image(row)[1], PairDataset(pairs, None, 16, 0).whole_image(row)[1])
