"""Captions that a release holds already, back into the store: what `dvc pull` brought is not paid for again."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.captioning.decode import Job
from pipeline.captioning.run_report import new_run_id
from pipeline.captioning.store import PerspectiveStore
from shards import ReleaseError, open_release


def take_from_release(folder: str | Path, stores: dict[str, PerspectiveStore], jobs: Iterable[Job]) -> int:
    """Put into `stores` what `jobs` lack and the release in `folder` has under the very same fingerprints.

    Returns the number of images that got a caption; 0 where there is no release, or one that cannot be read.
    """
    lacking = {job.sha256: set(job.perspectives) for job in jobs}
    try:
        release = open_release(folder) if lacking and Path(folder).is_dir() else None
    except (ReleaseError, OSError):
        return 0  # it says nothing about captions; the stage that uses it will say what is wrong
    if release is None:
        return 0
    made = release.manifest["fingerprints"]
    same = {name for name, store in stores.items() if made.get(name) == store.fingerprint}
    run, taken = new_run_id(), 0
    for batch in release.iter_batches(4096, ["image_sha256", "captions"]) if same else ():
        rows: dict[str, list[dict]] = {name: [] for name in same}
        for image in batch.to_pylist():
            wanted = lacking.get(image["image_sha256"], set()) & same
            found = [caption for caption in image["captions"] if caption["perspective"] in wanted]
            for caption in found:
                row = {
                    "image_sha256": image["image_sha256"],
                    "caption": caption.pop("text"),
                    "status": "ok",
                    "run": run,
                }
                rows[caption["perspective"]].append({**row, **caption})
            taken += bool(found)
        for name, of_name in rows.items():
            if of_name:
                stores[name].append(of_name, run, {"taken_from": "a release"})
    return taken
