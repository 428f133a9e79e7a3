"""Training pairs: aligned crops, seeded degradations, priors by the clean image's hash, caches."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

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
def pairs(toy_data):
    return read_pairs(toy_data / "index.parquet", "train")


def row_of(pairs, dataset: str) -> int:
    return int(pairs.by_dataset[dataset][0])


def degraded(pairs, **spec) -> tuple[PairDataset, int]:
    """A data set of crops of 16, one row of which is degraded as `spec` says; and that row."""
    row, degradations = row_of(pairs, "natural_denoising"), pairs.degradation.copy()
    degradations[row] = DegradationSpec(**spec).model_dump_json()
    return PairDataset(replace(pairs, degradation=degradations), None, 16, seed=0), row


@pytest.mark.parametrize("patch_size", [8, 16])
def test_crops_of_a_stored_pair_are_aligned_under_every_flip_and_turn(pairs, patch_size):
    dataset = PairDataset(pairs, None, patch_size, seed=0)
    for epoch in range(20):
        lq, gt = dataset.crop(Draw(row_of(pairs, "natural_deraining"), epoch))  # its lq is gt * 0.6 + 0.2
        assert lq.shape == gt.shape == (3, patch_size, patch_size)
        np.testing.assert_allclose(lq, gt * 0.6 + 0.2, atol=1.5 / 255)


def test_a_crop_is_a_function_of_seed_image_dataset_and_epoch(pairs):
    row, other = row_of(pairs, "natural_denoising"), row_of(pairs, "natural_deraining")
    one, again, reseeded = (PairDataset(pairs, None, 16, seed=seed) for seed in (0, 0, 1))
    before = one.crop(Draw(row, 3))
    one.crop(Draw(other, 1))
    for same in (one, again):
        np.testing.assert_array_equal(before, same.crop(Draw(row, 3)))
    assert not np.array_equal(before, one.crop(Draw(row, 4)))
    assert not np.array_equal(before, reseeded.crop(Draw(row, 3)))


def test_noise_on_the_fly_has_the_strength_that_the_index_asks_for(pairs):
    dataset, row = PairDataset(pairs, None, 16, seed=0), row_of(pairs, "natural_denoising")
    crops = [dataset.crop(Draw(row, epoch)) for epoch in range(60)]
    noise = np.concatenate([(lq - gt)[(gt > 0.3) & (gt < 0.7)] for lq, gt in crops])
    assert noise.std() * 255 == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_every_degradation_can_be_made_on_the_fly(pairs, kind):
    dataset, row = degraded(pairs, kind=kind)
    lq, gt = dataset.crop(Draw(row, 0))
    assert lq.shape == gt.shape and lq.dtype == np.float32 and lq.min() >= 0 and lq.max() <= 1
    changed = [np.abs(np.subtract(*dataset.crop(Draw(row, epoch)))).mean() for epoch in range(8)]
    assert (np.mean(changed) > 1e-4) == (kind != "identity")  # a crop of 16 pixels may lie between all drops of rain
    np.testing.assert_array_equal(dataset.crop(Draw(row, 0))[0], lq)
    whole_lq, whole_gt = dataset.whole_image(row)
    assert whole_lq.shape == whole_gt.shape
    np.testing.assert_array_equal(dataset.whole_image(row)[0], whole_lq)


def test_a_crop_is_degraded_as_the_image_around_it_would_be(pairs):
    """An enlarged crop equals the same place of the enlarged image: nothing is mirrored at the crop's own border."""
    dataset, row = degraded(pairs, kind="bicubic", scale=2)
    dataset.augment = False
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
    dataset, row = degraded(pairs, kind="identity", tone=1.0)
    crops = [dataset.crop(Draw(row, epoch)) for epoch in range(6)]
    assert all(np.array_equal(lq, gt) and 0 <= gt.min() <= gt.max() <= 1 for lq, gt in crops)
    assert np.std([gt.mean() for _, gt in crops]) > 0.02, "the brightness varies"
    np.testing.assert_array_equal(dataset.whole_image(row)[1], PairDataset(pairs, None, 16, 0).whole_image(row)[1])


def test_an_image_smaller_than_the_patch_is_mirrored(pairs):
    row = row_of(pairs, "natural_deraining")
    _, gt = PairDataset(pairs, None, 40, seed=0, augment=False).crop(Draw(row, 0))
    image = decode(pairs.gt_path[row]).astype(np.float32) / 255
    height, width = image.shape[1:]
    np.testing.assert_array_equal(gt[:, :height, :width], image)
    np.testing.assert_array_equal(gt[:, :height, width], image[:, :, width - 1])


def test_a_batch_has_priors_by_hash_missing_ones_marked_and_numbers_of_the_sorted_labels(pairs, tmp_path):
    wanted = {sha256: np.full(toy.DIM, 1.0 + i) for i, sha256 in enumerate(sorted(set(pairs.gt_sha256)))}
    missing = pairs.gt_sha256[0]
    toy.write_priors(tmp_path / "release", {k: v for k, v in wanted.items() if k != missing})
    dataset = PairDataset(pairs, read_release(tmp_path / "release"), 8, seed=0)
    batch = dataset.__getitems__([Draw(row, 0) for row in range(len(pairs))])
    assert batch["has_prior"].tolist() == [sha256 != missing for sha256 in pairs.gt_sha256]
    np.testing.assert_allclose(batch["prior"][batch["has_prior"]].numpy(), toy.DIM**-0.5, atol=1e-3)
    for pool in ("task", "domain"):
        names = sorted(set(getattr(pairs, pool)))
        assert [names[number] for number in batch[pool]] == list(getattr(pairs, pool))


@pytest.mark.parametrize("mode", ["memory", "memmap"])
def test_caches_give_the_pixels_of_the_files(pairs, tmp_path, mode):
    cache = open_images(mode, pairs, str(tmp_path))
    again = pickle.loads(pickle.dumps(cache))  # as for a worker
    for path in pairs.files:
        for images in (cache, again, again):
            np.testing.assert_array_equal(images[path], decode(path))
    assert len(list(tmp_path.iterdir())) == (len(pairs.files) if mode == "memmap" else 0), "nothing is left behind"


def test_a_mapped_image_follows_its_file(tmp_path):
    for value in (0, 1):
        toy.save_png(tmp_path / "a.png", np.full((4, 4, 3), value))
        assert (MappedImages({}, str(tmp_path / "cache"))[str(tmp_path / "a.png")] == 255 * value).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_batches_that_the_process_itself_gives(toy_data, pairs, workers):
    dataset = PairDataset(pairs, read_release(toy_data / "release"), 8, seed=0)
    sampler = BalancedBatches(pairs.by_dataset, 6, 0, last=4)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=whole, num_workers=workers)
    for draws, batch in zip(sampler, loader, strict=True):
        assert all((batch[name] == direct).all() for name, direct in dataset.__getitems__(draws).items())


def test_rows_that_are_not_ok_or_of_another_split_are_not_read(toy_data, tmp_path):
    table = parquet.read_table(toy_data / "index.parquet").to_pylist()
    table[0]["status"] = "unreadable"
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "index.parquet")
    expected = sorted(row["gt_path"] for row in table[1:] if row["split"] == "train")
    assert sorted(read_pairs(tmp_path / "index.parquet", "train").gt_path) == expected


def test_the_fingerprint_notices_every_input(tmp_path):
    toy.make_data(tmp_path)
    pairs = read_pairs(tmp_path / "index.parquet", "train")

    def fingerprint():
        return data_fingerprint(read_pairs(tmp_path / "index.parquet", "train"), read_release(tmp_path / "release"))

    seen = [fingerprint(), fingerprint()]
    lq = next(path for path in pairs.lq_path if path)
    pixels = decode(lq).transpose(1, 2, 0) / 255
    pixels[0, 0, 0] = 1 - pixels[0, 0, 0]  # one sample of one pixel, under the same name
    toy.save_png(Path(lq), pixels)
    seen.append(fingerprint())
    rows = parquet.read_table(tmp_path / "index.parquet").to_pylist()
    target = next(row for row in rows if row["degradation"] and row["split"] == "train")
    target["degradation"] = json.dumps({"kind": "gaussian_noise", "sigma": 15})
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "index.parquet")
    seen.append(fingerprint())
    toy.write_priors(tmp_path / "release", {sha256: np.arange(1.0, 33) for sha256 in set(pairs.gt_sha256)})
    seen.append(fingerprint())
    assert seen[0] == seen[1] and len(set(seen)) == 4


def test_files_that_went_missing_or_bad_are_named_with_the_remedy(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    for read, words in (
        (lambda: decode(str(tmp_path / "none.png")), "none.png: .*No such file.*pipeline.index"),
        (lambda: MappedImages({}, "cache")[str(tmp_path / "none.png")], "none.png: .*No such file.*pipeline.index"),
        (lambda: decode(str(tmp_path / "bad.png")), "bad.png: .*not an image.*pipeline.index"),
        (lambda: read_pairs(tmp_path / "none.parquet", "train"), "none.parquet: no such index; run python -m pip"),
        (lambda: read_release(tmp_path / "none"), "pipeline.embed"),
    ):
        with pytest.raises(TrainDataError, match=words):
            read()
