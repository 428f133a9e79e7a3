"""An index may come from a stranger: a data set's name is part of the names of files."""

import toy_training as toy

from student.train import main


def test_a_data_set_s_name_leads_out_of_no_folder(tmp_path, capsys):
    toy.make_data(tmp_path, {"../../out": ("natural", "denoising", 7)})
    assert main(["--params", str(toy.write_params(tmp_path, max_steps=2, val_every=1))]) == 1
    assert "the data set '../../out' has a / in its name" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()
