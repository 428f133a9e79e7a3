"""The caption stage, in process: only what is missing is done, every image ends with one row a perspective."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from processes import printed
from toy_project import Project

from pipeline import caption as stage
from pipeline import embed
from pipeline.captioning import run as caption_run


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def caption(capsys):
    return lambda *arguments: (stage.main(list(arguments)), capsys.readouterr().out)[1]


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is an error from its call on."""
    refuse = lambda _: pytest.fail("a model was loaded although nothing was missing")  # noqa: E731
    return lambda: monkeypatch.setattr(caption_run, "load_captioner", refuse)


def test_every_image_gets_one_row_per_perspective_and_a_second_run_loads_no_model(project, caption, no_model):
    assert "6 new of 6 images × 2 perspectives, 0 found" in caption()
    rows = project.captions()
    assert len(rows) == 12 and {status for *_, status, _ in rows.values()} <= {"ok", "empty"}
    before = sorted(path.name for path in project.root.glob("store/**/*"))
    no_model()
    assert "0 new of 6 images × 2 perspectives, 6 found in the store" in caption()
    assert sorted(path.name for path in project.root.glob("store/**/*")) == before, "an idle run changed the store"


def test_adding_one_image_plans_and_captions_exactly_that_image(project, caption):
    caption()
    before = project.captions()
    added = project.add("images/new.png", 99)
    project.write_index()
    out = caption("--plan")
    assert "1 of 7 images lack a caption (2 captions)" in out and "captions/s as last" in out
    assert "1 new of 7 images × 2 perspectives, 6 found in the store, 0 bad" in caption()
    after = project.captions()
    assert {key: after[key] for key in before} == before
    assert {sha256 for sha256, _ in after.keys() - before.keys()} == {added}


def test_equal_images_are_captioned_once(project, caption):
    project.rows += [dict(row, task="another", gt_path="elsewhere/" + row["gt_path"]) for row in project.rows]
    project.write_index()
    assert "6 new of 6 images" in caption()  # the second paths do not exist; the first do
    assert {row[3] for row in project.captions().values()} <= {"ok", "empty"}


def test_a_changed_prompt_recaptions_that_perspective_only(project, caption, no_model):
    caption()
    before = project.captions()
    out = caption("--set", "caption.perspectives.brightness=Is it dark?")
    assert "6 new of 6 images × 2 perspectives" in out
    rows = project.store_rows()
    assert {len(rows[key]) for key in before if key[1] == "content"} == {1}
    assert {len(rows[key]) for key in before if key[1] == "brightness"} == {2}
    no_model()
    assert "0 new of 6" in caption(), "the earlier prompt's captions were not found again"


def test_batch_size_workers_and_flushing_redo_nothing(project, caption, no_model):
    caption()
    no_model()
    for change in ("batch_images=1", "workers=2", "flush_images=1", "dtype=float32", "image_timeout_s=1"):
        assert "0 new of 6" in caption("--set", f"caption.{change}")


def test_captions_do_not_depend_on_the_batch(project, caption, tmp_path, monkeypatch):
    caption("--set", "caption.quantization=none")
    again = Project(tmp_path / "again")
    monkeypatch.chdir(again.root)
    caption("--set", "caption.quantization=none", "--set", "caption.batch_images=1", "--set", "caption.flush_images=2")
    assert again.captions() == project.captions()


def test_plan_counts_and_does_nothing(project, caption, no_model):
    no_model()
    out = caption("--plan")
    assert "6 of 6 images lack a caption (12 captions)" in out and "no estimate" in out
    assert not (project.root / "store").exists()


def test_run_report(project, caption):
    caption()
    (path,) = project.root.glob("store/runs/*.json")
    report = json.loads(path.read_text())
    assert report["images"] == 6 and sum(report["rows"].values()) == 12 and report["failures"] == {}
    assert {"load", "decode", "wait", "preprocess", "prefill", "generate", "write"} < report["seconds"].keys()
    assert report["images_per_second"] > 0 and report["tokens_per_second"] > report["captions_per_second"] > 0
    assert report["peak_memory_bytes"]["host"] > 2**20 and report["device"] == "cpu" and report["torch"]
    provenance = pq.read_metadata(next(project.root.glob("store/*/part-*"))).metadata[b"provenance"]
    assert json.loads(provenance)["torch"] == report["torch"]


def test_a_broken_image_costs_only_itself(project, caption):
    bad = {project.add(f"images/bad{number}.png", 0, content) for number, content in enumerate([b"", b"no image"])}
    project.write_index()
    out = caption("--set", "caption.max_error_fraction=0")
    assert "8 new of 8 images × 2 perspectives, 0 found in the store, 2 bad" in out
    assert "1 × bad_image: empty file (0 bytes)" in out
    statuses = {key: row[3] for key, row in project.captions().items()}
    assert len(statuses) == 16
    assert {key[0] for key, status in statuses.items() if status == "bad_image"} == bad


def test_a_vanished_or_changed_file_is_an_error_that_can_be_retried(project, caption, no_model):
    first, second = (project.root / row["gt_path"] for row in project.rows[:2])
    content = first.read_bytes()
    first.unlink()
    second.write_bytes(content)
    for _ in range(2):  # the second run has nothing to do, and the store still lacks them
        with pytest.raises(SystemExit, match="2 of 6 images have no caption but an error.*--retry-errors.*00000.png"):
            caption()
    errors = {row[4].split(": ", 1)[1] for row in project.captions().values() if row[3] == "error"}
    assert errors == {"No such file or directory", "changed since it was indexed; run python -m pipeline.index"}
    first.write_bytes(content)
    caption_of_first = (project.rows[0]["gt_sha256"], "content")
    assert "2 new of 6" in caption("--retry-errors", "--set", "caption.max_error_fraction=1")
    statuses = sorted(row["status"] for row in project.store_rows()[caption_of_first])
    assert statuses in (["error", "ok"], ["empty", "error"])
    no_model()
    out = caption("--set", "caption.max_error_fraction=0.2")
    assert "0 new of 6" in out and "(captions that failed: 2 error)" in out, "errors are retried only when asked"


def test_a_verdict_by_limits_is_given_anew_when_they_change(project, caption, no_model):
    small = ["--set", "caption.max_pixels=100"]
    large = sum(row["width"] * row["height"] > 100 for row in project.rows)
    assert f"{large} bad" in caption(*small) and large > 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_run, "load_captioner", None)
        assert "0 new of 6" in caption(*small), "the same limits, the same verdict"
    assert f"{large} new of 6 images" in caption()
    rows = project.store_rows().values()
    assert all({row["status"] for row in group} & {"ok", "empty"} for group in rows)
    no_model()
    assert "0 new of 6" in caption() and "0 new of 6" in caption(*small), "a caption outlives any limit"


def test_captions_that_are_cut_are_said(project, caption):
    out = caption("--set", "caption.max_new_tokens=1")
    assert "warning: 12 of 12 captions were cut at caption.max_new_tokens = 1" in out and "eos_token_id" in out


def test_plan_says_what_is_damaged_and_survives_odd_run_reports(project, caption, capsys):
    caption()
    part = next(project.root.glob("store/*/part-*"))
    part.write_bytes(part.read_bytes()[:-1])
    for name, content in {"zz1": "", "zz2": "{}", "zz3": "[1]", "zz4": '{"model": "x"}'}.items():
        (project.root / f"store/runs/{name}.json").write_text(content)
    stage.main(["--plan"])
    said = capsys.readouterr()
    assert f"set aside {part.relative_to(project.root)}.bad: damaged" in said.err and "captions/s as last" in said.out


def test_out_of_memory_keeps_what_is_finished(project, monkeypatch):
    load = caption_run.load_captioner

    def small_device(config):
        captioner = load(config)
        whole, calls = captioner.caption, []

        def full_after_one_batch(*arguments):
            calls.append(arguments)
            if len(calls) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nIf reserved")
            return whole(*arguments)

        captioner.caption = full_after_one_batch
        return captioner

    import torch

    monkeypatch.setattr(caption_run, "load_captioner", small_device)
    said = "out of memory even with one image at a time.*Tried to allocate 2 GiB"
    with pytest.raises(SystemExit, match=said) as error:
        stage.main([])
    assert "\n" not in str(error.value)
    assert len(project.captions()) == 4 * 2


def test_an_unused_model_needs_no_torch(project, caption):
    caption()
    probe = (
        "import sys; from pipeline.caption import main; main([]); "
        "heavy = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    assert "no model loaded" in printed(project.root, "-c", probe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "caption.modle=x"], r"unknown key caption\.modle = 'x'; did you mean 'model'\?"),
        (["--set", "train.max_stepz=1"], r"unknown key train\.max_stepz = 1; did you mean 'max_steps'\?"),
        (["--set", "caption.quantization=nf5"], r"caption\.quantization = 'nf5'.*nf4-dequantized"),
        (["--set", "caption.perspectives={Bad Name: x}"], "'Bad Name' must be lower-case"),
        (["--set", "caption.perspectives={}"], r"caption\.perspectives = \{\}"),
        (["--set", "paths.index=absent.parquet"], r"absent\.parquet: no index; run python -m pipeline\.index"),
        (["--set", "paths.index=params.yaml"], r"params\.yaml: not a readable index"),
        (["--set", "caption.model=images"], "'images': no .*safetensors"),
        (["--set", "caption.model=./absent"], r"'\./absent': no such directory"),
        (["--params", "absent.yaml"], r"absent\.yaml: no such parameter file"),
    ],
)
def test_mistakes_are_named_in_one_line(project, arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        stage.main(arguments)
    assert str(error.value).startswith("caption: ") and "\n" not in str(error.value)
    assert not (project.root / "store").exists(), "a mistake left something behind"


def test_a_checkpoint_that_is_no_llava_is_named(project):
    (project.root / "broken").mkdir()
    (project.root / "broken/model.safetensors").write_bytes(b"no weights")
    (project.root / "broken/config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(SystemExit, match=r"caption: caption\.model = '\./broken' cannot be loaded: ") as error:
        stage.main(["--set", "caption.model=./broken"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", [stage, embed])
def test_several_processes_that_would_do_the_same_are_refused(project, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="one of several processes .WORLD_SIZE.: start it once, with --ray"):
        command.main([])


def test_ray_that_is_not_installed_is_named(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"--ray needs Ray .*: pip install 'teachonce\[ray\]'"):
        stage.main(["--ray"])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit, match="0"):
        stage.main(["--help"])
    assert "python -m pipeline.caption --plan" in capsys.readouterr().out
