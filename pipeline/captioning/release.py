"""Captions that a release holds already, back into the store: what `dvc pull` brought is not paid for again."""

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from pipeline.captioning.decode import Job
from pipeline.captioning.run_report import new_run_id
from pipeline.captioning.store import PerspectiveStore
from shards import ReleaseError, open_release
from student.places import is_folder

ROWS = 4096


def take_from_release(folder: str | Path, stores: Mapping[str, PerspectiveStore], jobs: Iterable[Job]) -> int:
    """Put into `stores` what `jobs` lack and the release in `folder` has under the very same fingerprints.

    Returns the number of images that got a caption. A release that is damaged, or of another version, is told.
    """
    if not is_folder(folder):
        return 0
    run, taken = new_run_id(), 0
    try:
        release = open_release(folder)
        made = release.manifest["fingerprints"]
        same = {name for name, store in stores.items() if made.get(name) == store.fingerprint}
        jobs = iter(jobs if same else ())
        while some := list(islice(jobs, ROWS)):
            rows: dict[str, list[dict]] = {name: [] for name in same}
            there = release.lookup_rows([job.sha256 for job in some])[1]
            for job in (job for job, found in zip(some, there, strict=True) if found):
                wanted = same & {*job.perspectives}
                found = [c for c in release.record(job.sha256)["captions"] if c["perspective"] in wanted]
                for caption in found:
                    row = {"image_sha256": job.sha256, "status": "ok", "run": run}
                    rows[caption["perspective"]].append({**row, "caption": caption.pop("text"), **caption})
                taken += bool(found)
            for name, of_name in rows.items():
                if of_name:
                    stores[name].append(of_name, run, {"taken_from": "a release"})
    except ReleaseError as error:  # what is damaged in it is captioned again
        print(f"caption: captions of {folder} are not taken: {error}", file=sys.stderr)
    return taken
