"""An actor of the cluster does a task after the other; what a model of many gigabytes is, it finds out once."""

from toy_project import Project

from pipeline.captioning.run import CaptionActor
from pipeline.params import load_all
from teacher import identity


def test_an_actor_hashes_the_model_s_files_once(tmp_path, monkeypatch):
    project = Project(tmp_path)
    monkeypatch.chdir(project.root)
    hashed, sha256_of_directory = [], identity.sha256_of_directory

    def counted(directory):
        hashed.append(directory)
        return sha256_of_directory(directory)

    monkeypatch.setattr(identity, "sha256_of_directory", counted)
    actor = CaptionActor(load_all(project.params).caption, "index.parquet", "store", retry_errors=False)
    with actor.workers:
        for low, high in (("0" * 64, "8" + "0" * 63), ("8" + "0" * 63, "g")):
            report, _ = actor([(low, high)])
    assert report.images == 6 and len(project.captions()) == 12
    assert len(hashed) == 2, "for the fingerprints, and by the teacher"
