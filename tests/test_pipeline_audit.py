"""The audit of captions: faults are counted, what is sound is not, and equal releases give equal numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.embedding.audit import TOLD, audit, faults_of, in_another_language, script_of, warnings
from pipeline.indexing.table import SCHEMA, Index
from shards import open_release, write_release

QUESTION = "What is the content of this image? Answer in one sentence."


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A brown dog on the grass looks at the camera.", None),
        ("The sky is very, very blue and the sea is blue.", None),
        ("A sorry sight: an old house, and I cannot help smiling.", None),
        ("I'm sorry, but I can't see the image.", "refusal"),
        ("I’m unable to identify what this shows.", "refusal"),
        ("What is the content of this image? A dog.", "repeats_question"),
        ("a red car and a red car and a red car and a red car and", "loop"),
        ("The image is dark dark dark dark dark", "loop"),
    ],
)
def test_faults_are_told_from_what_people_say(text, fault):
    assert faults_of(text, QUESTION) == ([fault] if fault else [])


def test_scripts():
    said = ["Größe", "这是一张图片", "Это фото", "12 %"]
    assert [script_of(text) for text in said] == ["LATIN", "CJK", "CYRILLIC", None]


ENGLISH = [
    "The image features a large brown dog lying on a wooden floor next to a couch.",
    "A man is riding a wave on top of a surfboard in the ocean.",
    "Two giraffes are standing in a grassy field with trees in the background.",
    "The image depicts a plate of food, including broccoli, rice and chicken.",
    "A red double-decker bus drives down a street in London.",
    "A bowl of fresh fruit sits on a table.",
    "A cat sleeps on a keyboard in front of a computer monitor.",
    "An old train travels through a forest.",
]
FOREIGN = [
    "L'image montre une femme dans un parc avec un chien brun.",
    "Das Bild zeigt einen großen Hund, der auf dem Boden liegt.",
    "La imagen muestra un perro grande acostado en el suelo.",
    "A imagem mostra um grande cachorro deitado no chão.",
    "На изображении большая собака.",
    "这张图片显示了一只大狗躺在地板上。",
]


def test_a_caption_in_another_language_is_told_whatever_most_are_in():
    many = [f"{text[:-1]} number {i}." for text in ENGLISH for i in range(5)]
    assert in_another_language([*many, *FOREIGN]) == set(FOREIGN)
    things, places = ("einen Hund", "eine Katze", "ein Auto"), ("der Straße", "dem Boden", "der Wiese", "dem Dach")
    german = [f"Das Bild zeigt {thing} auf {place}." for thing in things for place in places]
    assert in_another_language([*german, ENGLISH[0]]) == {ENGLISH[0]}
    chinese = [
        f"这张图片显示了一只{thing}躺在{place}上。" for thing in "狗猫鸟马" for place in ("地板", "草地", "沙发")
    ]
    assert in_another_language([*chinese, ENGLISH[0]]) == {ENGLISH[0]}
    assert in_another_language(ENGLISH) == in_another_language([]) == set()
    templates = ["It was taken from space, looking straight down.", "It is a cross-sectional view by a scanner."]
    assert in_another_language(templates) == set(), "few different texts"
    names = [f"{a}a {a}b {a}c {a}d {a}e" for a in "bdfghklm"]
    assert in_another_language(names) == set(), "where no words are usual they tell nothing"


def make(folder, captions, vectors, datasets):
    """A release and an index of images with these (content, object) captions."""
    shas = [f"{i:064x}" for i in range(len(captions))]
    rows = [
        {
            "image_sha256": sha256, "width": 8, "height": 8, "embedding": vector,
            "captions": [
                {"perspective": name, "text": text, "n_tokens": 5, "finish_reason": "stop"}
                for name, text in zip(("content", "object"), texts, strict=True)
            ],
        }
        for sha256, texts, vector in zip(shas, captions, vectors, strict=True)
    ]  # fmt: skip
    identity = {"fingerprints": {"content": "a" * 64, "object": "b" * 64}, "teacher_fingerprint": "c" * 64}
    write_release(folder / "release", rows, [], teacher={}, embedder={}, dim=len(vectors[0]), **identity)
    index = [
        dict.fromkeys(SCHEMA.names)
        | {"dataset": dataset, "domain": "d", "gt_path": f"{sha}.png", "gt_sha256": sha, "status": "ok"}
        for sha, dataset in zip(shas, datasets, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(index, SCHEMA), folder / "index.parquet")
    questions = {"content": QUESTION, "object": "What is the main object?"}
    return audit(open_release(folder / "release"), Index(folder / "index.parquet"), questions)


def test_counts_and_the_worst_images(tmp_path):
    rng = np.random.default_rng(0)
    captions = [(f"A dog number {i} runs over the grass.", "The object is a dog, running.") for i in range(60)]
    captions[3] = ("I'm sorry, I cannot see the picture.", "The object is a dog, running.")
    captions[7] = ("这是一张图片", "The object is a dog, running.")
    vectors = np.array([1.0, 0, 0, 0]) + 0.05 * rng.standard_normal((60, 4))
    vectors[20] = [0.0, 1, 0, 0]  # of another kind than the rest of its data set
    found = make(tmp_path, captions, vectors, ["dogs"] * 60)
    content, thing = found["perspectives"]["content"], found["perspectives"]["object"]
    assert found["images"] == content["captions"] == 60 and content["different"] == 60
    assert {fault: content[fault] for fault in TOLD} == {
        "refusal": 1, "repeats_question": 0, "loop": 0, "other_language": 1
    }  # fmt: skip
    assert (thing["different"], thing["most_frequent"]) == (1, 60) and not any(thing[fault] for fault in TOLD)
    assert found["no_common_word"] == 60 - 58 and found["far"] >= 1
    worst = {int(image["image_sha256"], 16): image["why"] for image in found["worst"]}
    assert (
        list(worst)[:3] == [3, 7, 20] and worst[3] == ["content: refusal"] and worst[7] == ["content: other_language"]
    )
    assert worst[20][0].startswith("unlike the rest of dogs: similarity 0.0")
    told = warnings(found)
    assert any("100% of the captions of object are one and the same text" in line for line in told)
    assert any("2% of the captions of content refuse to answer" in line for line in told)


def test_sound_captions_give_no_warning_and_equal_numbers(tmp_path):
    captions = [(f"A dog number {i} runs over the grass.", f"The object is a dog with collar {i}.") for i in range(30)]
    vectors = np.array([1.0, 0, 0, 0]) + 0.05 * np.random.default_rng(0).standard_normal((30, 4))
    founds = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        founds.append(make(tmp_path / name, captions, vectors, ["dogs"] * 30))
    assert founds[0] == founds[1] and warnings(founds[0]) == []
