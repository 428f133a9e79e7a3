"""Why an image was restored as it was: the prompts that it chose, and the training captions nearest to its domain.

The domain prompt is trained to equal the teacher's embedding of the caption of a clean image, so captions whose
embeddings lie nearest to it say in words what the student takes the picture for.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from student.files import write_file
from student.model import Student
from student.network.prompts import Composition, Prompts
from student.restoration.paths import explanation_of

NEAREST = 5
BATCH = 65_536


def usage_of(model: str) -> dict[str, dict[str, list[float]]]:
    """Pool → task or domain → mean weight of each prompt on its images, as the trainer measured it last; empty for a
    student that came without, as from a hub."""
    try:
        usage = json.loads(Path(model, "curves", "usage.json").read_text(encoding="utf-8"))
        return {pool: dict(sorted(labels.items())) for pool, labels in usage.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def alike(composition: Composition, used: dict[str, list[float]], size: int) -> dict[str, float]:
    """The prompts of one image told as tasks or domains, the likeliest first, shares that sum to 1: each prompt counts
    for the labels by how much they use it. Empty where the numbers are of another pool."""
    if any(len(weights) != size for weights in used.values()):
        return {}
    by_label = np.array(list(used.values())).reshape(len(used), size)
    shares = by_label / np.maximum(by_label.sum(0), 1e-12)
    weights, chosen = composition.weight_BK[0].float().cpu().numpy(), composition.index_BK[0].cpu().numpy()
    found = dict(zip(used, shares[:, chosen] @ weights, strict=True))
    total = sum(found.values())  # less than 1 where it chose prompts that no label uses
    return {
        label: round(float(share / total), 4)
        for label, share in sorted(found.items(), key=lambda pair: -pair[1])
        if total > 0.5
    }


class Explainer:
    """`explain(prompts)` → a JSON-ready dict. `release`: the caption shards that the student was distilled from;
    `model`: its folder or hub id.

    Without a release there, or with one whose embeddings are others than the student was distilled from, the captions
    are left out, and the result says so under "captions_missing".
    """

    def __init__(self, student: Student, release: str | Path, model: str):
        from student.data.pairs import TrainDataError, read_release

        self.release, self.missing, self.usage = None, None, usage_of(model)
        self.values = {name: len(pool.keys_ND) for name, pool in student.pools().items()}
        if "domain" not in self.values:
            self.missing = "this student has no domain pool"
            return
        try:
            self.release = read_release(release)
        except TrainDataError as error:
            reason = str(error).partition(";")[0].removeprefix(f"{release}: ")
            reason = reason if str(release) in reason else f"{release}: {reason}"
            self.missing = f"{reason}; name the caption shards with --release"
            return
        if self.release.dim != student.config.prompt_dim:
            self.missing = f"{release} has {self.release.dim} dimensions, this student {student.config.prompt_dim}"
        elif student.embedding_fingerprint not in (None, made := self.release.manifest["embedding_fingerprint"]):
            theirs = f"this student was distilled from {student.embedding_fingerprint[:16]}"
            self.missing = f"{release} holds embeddings {made[:16]}, {theirs}; name that one with --release"
        self.release = None if self.missing else self.release

    def explain(self, prompts: Prompts) -> dict[str, Any]:
        """What one image chose: per pool the prompts with their weights (the largest first), and nearest captions."""
        about: dict[str, Any] = {}
        for name, composition in (("task", prompts.task), ("domain", prompts.domain)):
            if composition is not None:
                about[name] = self._chosen(composition, self.values[name])
                if told := alike(composition, self.usage.get(name, {}), self.values[name]):
                    about[name]["like"] = told
        if self.release is not None:
            about["nearest_captions"] = self.nearest(prompts.domain.prompt_BD[0].float().cpu().numpy())
        else:
            about["captions_missing"] = self.missing
        return about

    def nearest(self, query: np.ndarray, count: int = NEAREST) -> list[dict[str, Any]]:
        """The `count` images of the release with the highest cosine similarity to `query` [D], with their captions."""
        query = query / max(float(np.linalg.norm(query)), 1e-12)
        shas, best = self.release.sha256s(), []
        for start in range(0, len(shas), BATCH):
            scores = self.release.vectors(start, start + BATCH).astype(np.float32) @ query
            best += [(float(scores[i]), start + int(i)) for i in np.argsort(-scores)[:count]]
            best = sorted(best, reverse=True)[:count]
        return [
            {"similarity": round(score, 4), "image_sha256": shas[row], "captions": self.release.captions(shas[row])}
            for score, row in best
        ]

    def write(self, target: Path, prompts: Prompts, tiles: int, slices: int = 1) -> Path:
        """OUTPUT.explain.json beside the restored file; of a volume of more `slices`, it is about the middle one."""
        file = explanation_of(target)
        about: dict[str, Any] = {"image": target.name}
        if slices > 1:
            about |= {"slices": slices, "explained_slice": slices // 2}
        text = json.dumps(about | {"tiles": tiles, **self.explain(prompts)}, indent=2, ensure_ascii=False)
        write_file(file, (text + "\n").encode())
        return file

    @staticmethod
    def _chosen(composition: Composition, size: int) -> dict[str, Any]:
        indices, weights = composition.index_BK[0].tolist(), composition.weight_BK[0].tolist()
        chosen = [{"prompt": i, "weight": round(w, 4)} for w, i in sorted(zip(weights, indices, strict=True))[::-1]]
        return {"pool_size": size, "chosen": chosen}
