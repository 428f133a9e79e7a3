"""Import a published DATPRL-IR checkpoint, or write ours in the published layout.

    python -m student.convert net_g_latest.pth students/md-6t
    python -m student.convert net_g_latest.pth students/mine --task-top-k 4 --domain-top-k 6
    python -m student.convert students/md-6t net_g_ours.pth --to-published
    python -m student.convert artifacts/student students/small --half    # ours in fp16: half the bytes, to hand on

The configuration is read from the tensors' names and shapes; top-k leaves no trace there, so name it if it is not the
published one. Only tensors are loaded: a checkpoint with pickled code in it is refused.
"""

import argparse
import contextlib
import hashlib
import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from student.files import NotWritten, in_place_of, write_file

if TYPE_CHECKING:
    from student.model import Student

PREFIXES = ("module.", "net.", "_orig_mod.")
"""What data-parallel, Lightning and torch.compile put before each name, in any order."""


class ConvertError(ValueError):
    """The conversion is not possible; the message names the file, the reason and the remedy."""


def load_published(file: Path) -> dict:
    """The tensors of a `.pth`: its `params_ema`, else `params`, else `state_dict`, else itself; without `PREFIXES`.

    Raises ConvertError for a missing file, pickled code, or anything that is no mapping of names to tensors.
    """
    import torch

    _refuse_text(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConvertError(f"{file}: no such file") from None
    except (pickle.UnpicklingError, AttributeError) as error:
        raise ConvertError(
            f"{file}: refused, since it holds Python objects besides tensors and loading those could run code. "
            "If you trust it, load it where it was made and save its state_dict alone. "
            f"({str(error).splitlines()[0]})"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise ConvertError(f"{file}: is no readable PyTorch checkpoint ({str(error).splitlines()[0]})") from None
    if isinstance(content, dict):
        inner = (content.get(key) for key in ("params_ema", "params", "state_dict"))
        content = next((weights for weights in inner if isinstance(weights, dict)), content)
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(t) for t in content.values()):
        raise ConvertError(f"{file}: has no tensors under params_ema, params or state_dict, nor at its top")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in content)), None):
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    if broken := [name for name, tensor in content.items() if not torch.isfinite(tensor).all()]:
        raise ConvertError(f"{file}: {broken[0]} holds numbers that are not finite (of {len(broken)} tensors): damaged")
    return content


def _refuse_text(file: Path) -> None:
    """Raises `ConvertError` for what often lies in place of weights."""
    with contextlib.suppress(OSError), file.open("rb") as content:  # an OSError is told by whoever loads it
        if reason := in_place_of(content.read(200), "the weights"):
            raise ConvertError(f"{file}: {reason}")


def import_published(
    file: Path, task_top_k: int | None = None, domain_top_k: int | None = None
) -> tuple["Student", list[str]]:
    """A published checkpoint as a `Student` in eval mode, and the names of the dead tensors left out.

    Raises ConvertError, naming the tensors, for anything that is not exactly a published layout.
    """
    import torch

    from student.model import Student
    from student.network.published_layout import NotPublished, from_published, infer_config

    theirs = load_published(file)
    try:
        config = infer_config(theirs, task_top_k, domain_top_k)
        with torch.device("meta"):
            student = Student(config)
        weights, dead = from_published(theirs, {n: t.shape for n, t in student.state_dict().items()}, config)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise ConvertError(f"{file}: {reasons} (name top-k with --task-top-k and --domain-top-k)") from None
    except (NotPublished, ValueError, IndexError) as error:  # the latter two: a tensor with too few dimensions
        raise ConvertError(f"{file}: {error}") from None
    student.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return student.requires_grad_(True).eval(), dead


def _load(folder: Path) -> "Student":
    from student.model import Student

    try:
        return Student.from_pretrained(str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConvertError(f"{folder}: {' '.join(str(error).split())}") from None


def export_published(folder: Path, file: Path) -> int:
    """Write the student in `folder` as `{"params": ...}` in the published layout; returns the number of tensors."""
    import torch

    from student.network.published_layout import NotPublished, to_published

    student = _load(folder)
    try:
        theirs = to_published(student.state_dict(), student.config)
    except NotPublished as error:
        raise ConvertError(f"{folder}: {error}") from None
    buffer = io.BytesIO()
    torch.save({"params": theirs}, buffer)
    write_file(file, buffer.getvalue())
    return len(theirs)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m student.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="published .pth, or with --to-published a folder of ours")
    parser.add_argument("target", type=Path, help="folder to create, or with --to-published the .pth to write")
    parser.add_argument("--task-top-k", type=int, metavar="K", help="default: 3")
    parser.add_argument("--domain-top-k", type=int, metavar="K", help="default: 5 (Restormer), 3 (NAFNet)")
    parser.add_argument("--to-published", action="store_true", help="convert ours to the published layout")
    parser.add_argument("--half", action="store_true", help="copy a folder of ours with weights in fp16")
    options = parser.parse_args(arguments)
    try:
        if options.target.exists() and (options.target.is_file() or any(options.target.iterdir())):
            raise ConvertError(f"{options.target}: exists already; choose another target or remove it")
        if options.half:
            _load(options.source).half().save_pretrained(options.target, model_card_kwargs={"Weights": "fp16"})
            size = sum(file.stat().st_size for file in options.target.glob("*.safetensors"))
            print(f"{options.target}: {size / 1e6:.1f} MB in fp16")
        elif options.to_published:
            count = export_published(options.source, options.target)
            print(f"{options.target}: {count} tensors in the published layout, the dead ones as zeros")
        else:
            student, dead = import_published(options.source, options.task_top_k, options.domain_top_k)
            digest = hashlib.sha256(options.source.read_bytes()).hexdigest()
            details = {"Imported from": f"`{options.source.name}` (sha256 `{digest}`)"}
            student.save_pretrained(options.target, model_card_kwargs=details)
            for name in dead:
                print(f"left out, since it cannot change the output: {name}")
            millions, config = sum(p.numel() for p in student.parameters()) / 1e6, student.config
            pools = student.pools().items()
            top_k = ", ".join(f"{name} top-{pool.top_k} of {len(pool.keys_ND)}" for name, pool in pools)
            print(f"{options.target}: {millions:.2f} M parameters, {config.backbone}, {config.fusion}, {top_k}")
    except (ConvertError, NotWritten) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
