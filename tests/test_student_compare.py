"""student.compare: differences by image, of one kind of numbers."""

import csv

import pytest

from student import compare


def write(folder, scores, variant="basicsr"):
    folder.mkdir()
    with open(folder / "per_image.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, ["dataset", "image", "psnr", "variant", "crop_border"])
        rows.writeheader()
        for dataset, values in scores.items():
            for image, psnr in enumerate(values):
                row = {"dataset": dataset, "image": f"{image}.png", "psnr": psnr, "variant": variant, "crop_border": 0}
                rows.writerow(row)
    return str(folder)


def test_what_images_share_cancels_and_only_images_of_both_are_compared(tmp_path, capsys):
    first = write(tmp_path / "first", {"rain": [20, 30, 40], "noise": [30, 30]})
    second = write(tmp_path / "second", {"rain": [21, 31, 41], "noise": [29]})
    assert compare.main([first, second, "--out", str(tmp_path / "table.md")]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "| rain | 3 | 30.00 | 31.00, +1.00 [+1.00, +1.00] |" in text and text in capsys.readouterr().out
    assert "| noise | 2 | 30.00 | 29.00 (of 1), -1.00 [-1.00, -1.00] |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["first", "other"], "numbers of different kinds"), (["first", "none"], "none: no evaluation there")],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "first", {"rain": [20]})
    write(tmp_path / "other", {"rain": [20]}, variant="promptir")
    assert compare.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
