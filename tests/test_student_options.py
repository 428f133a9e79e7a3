"""Options that change how a run starts or computes: k-means, precisions, compilation, processes' memory layout."""

import pytest
import torch
import toy_training as toy

from student.model import Student
from student.training.setup import build_student, kmeans, open_job

KMEANS = {"domain_init": "kmeans"}


@pytest.fixture
def rooms(toy_data, tmp_path):
    """A function from a name to another place for a run on the same data."""
    return lambda name: toy.beside(toy_data, tmp_path / name)


def test_kmeans_starts_the_domain_pool_at_the_release_s_centroids(toy_data):
    job = open_job(toy.params(toy_data, KMEANS))
    assert len(job.priors()) == 16  # one a clean training image
    pool = build_student(job).pools()["domain"]
    centroids = torch.from_numpy(kmeans(job.priors(), 4, seed=0))
    torch.testing.assert_close(pool.keys_ND.detach(), centroids)
    torch.testing.assert_close(pool.values_NLD.detach(), centroids[:, None].expand(4, 2, toy.DIM))


def test_with_kmeans_the_first_step_is_nearer_to_the_teacher(rooms):
    align = {
        name: toy.losses(toy.run_here(rooms(name), model, max_steps=1, val_every=0))[0]["loss_align"]
        for name, model in (("random", {}), ("kmeans", KMEANS))
    }
    assert align["kmeans"] < align["random"] - 0.2


def test_a_start_from_a_student_is_not_overwritten_by_kmeans(rooms, toy_data):
    before = toy.run_here(rooms("before"), max_steps=2, val_every=0)
    job = open_job(toy.params(toy_data, KMEANS, init_from=str(before)))
    assert toy.same(build_student(job).state_dict(), toy.weights(before))


def test_bf16_trains_near_fp32_resumes_exactly_and_publishes_fp32(rooms):
    settings = {"max_steps": 8, "val_every": 4, "ema_decay": 0.9}
    fp32, bf16 = (toy.run_here(rooms(precision), mixed_precision=precision, **settings) for precision in ("no", "bf16"))
    rows, expected = toy.losses(bf16), toy.losses(fp32)
    assert rows != expected
    for row, other in zip(rows, expected, strict=True):
        assert row["loss_pixel"] == pytest.approx(other["loss_pixel"], rel=0.05)
    interrupted = rooms("interrupted")
    toy.run_here(interrupted, mixed_precision="bf16", **settings, stop_at_step=3)
    out = toy.run_here(interrupted, mixed_precision="bf16", **settings)
    assert toy.losses(out) == rows and toy.same(toy.weights(out), toy.weights(bf16))
    assert {tensor.dtype for tensor in toy.weights(out).values()} == {torch.float32}
    assert Student.from_pretrained(str(out))(torch.rand(1, 3, 16, 16)).isfinite().all()


@pytest.mark.slow
def test_compiled_by_inductor_a_run_has_the_same_losses_and_weights_names(rooms):
    settings = {"max_steps": 6, "val_every": 3, "lr": 4e-4}
    eager = toy.run_here(rooms("eager"), toy.STILL, **settings)
    compiled = toy.run_here(rooms("compiled"), toy.STILL, **settings, compile=True)
    toy.assert_losses_near(toy.losses(compiled), toy.losses(eager), 1e-4)
    assert toy.weights(compiled).keys() == toy.weights(eager).keys()
    # How it is carried out: a compiled run goes on without, and the other way round.
    mixed = rooms("mixed")
    toy.run_here(mixed, toy.STILL, **settings, compile=True, stop_at_step=2)
    assert len(toy.log_rows(toy.run_here(mixed, toy.STILL, **settings))) == 6
