"""Restore one image of any size with a student: whole, or in overlapping tiles that agree with the whole.

Three things of a forward depend on all pixels: which prompts are chosen, how the blocks mix their channels, and which
pixels are taken together where the sides are halved. Tiles share the first two, estimated from a sample of the image,
and start where the pairs do. What is left is hard to see, and `refine` makes it smaller (benchmarks/RESULTS.md).
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from student.machine import keep_freed_memory, resident_bytes
from student.model import Student
from student.network.prompts import Prompts
from student.restoration.blocks import restoring
from student.restoration.memory import available_bytes, forward_bytes
from student.restoration.tiling import mosaic, plan_cores, plan_tiles

SHIPPED = Path(__file__).parents[1] / "mini"
"""The student that is used where no other is named."""
ABOUT_SHIPPED = (
    f"no --model given: the shipped student, for photographs, satellite images and scans; {SHIPPED}/README.md"
)

Tile = Literal["off", "auto"] | int
DTYPES = ("float32", "bfloat16", "float16")

SMALLEST_SIDE = 16
"""Shorter sides are mirrored out to this, so that even one pixel can be restored."""
LARGEST_AUTO_TILE = {"cpu": 512}
"""A larger tile is no faster on a CPU; on other devices 1024."""
LARGEST_WHOLE_ON_GPU = 2**23
"""Pixels: at the published width the widest features of more have 2^31 elements, too many for int32 in a kernel."""
SMALLEST_TILE = 64
PROMPT_SIDE = 512
"""Prompts are chosen by at least so many pixels squared, also when the tiles are smaller: only the encoder runs."""
SAMPLE_SIDE = 256
"""What the blocks compute from all pixels comes from a sample of at least so many pixels squared."""
USABLE = 0.5
"""Share of the free memory to plan with; the rest is for workspaces of convolutions and for other programs."""


class RestoreError(ValueError):
    """The image or the model cannot be used; the message is one line and names the remedy."""


@dataclass(frozen=True)
class Restored:
    """A restored image `[3, H, W]` float32 in [0, 1], the prompts it chose, and in how many tiles (1: whole)."""

    image: np.ndarray
    prompts: Prompts
    tiles: int


def load_student(model: str | None) -> Student:
    """`Student.from_pretrained` (a directory or a hub id; None: the shipped student) with every failure as one line of
    `RestoreError`."""
    try:
        return Student.from_pretrained(str(model or SHIPPED)).eval()
    except Exception as error:  # file system, hub, JSON, pydantic, safetensors: each has its own errors
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > 400:
            reason = reason[:400] + " ..."
        named = "" if str(model) in reason else f"{model}: "
        raise RestoreError(
            f"{named}{reason} (train a student with dvc repro, or give --model DIR or a hub id)"
        ) from None


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's GPU, else the CPU; raises `RestoreError` for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError here
        raise RestoreError(f"--device {name}: {str(error).splitlines()[0]}; try --device cpu") from None
    return device


class Restorer:
    """`restorer(lq)` restores one image `[3, H, W]` float32 in [0, 1] of any size.

    `tile`: "off" (whole), a side in pixels (an image of no more pixels than such a tile is restored whole), or "auto"
    (whole if it fits into half of the free memory, else the largest tile that does). `overlap`: pixels that
    neighbouring tiles share. Both are brought to multiples of the student's stride: the tile down, the overlap up.
    `strength`: from 0 (the input) to 1 (what the network makes of it). `batch`: tiles a forward. `refine`: how
    often to go over all tiles before restoring them, for what they share to be that of all pixels and not of a
    sample (0: twice as fast). `dtype` other than float32 runs under autocast. On a CPU the process keeps freed
    memory from then on (`student.machine`).
    """

    def __init__(
        self,
        student: Student,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        tile: Tile = "auto",
        overlap: int = 32,
        batch: int = 1,
        refine: int = 1,
        strength: float = 1.0,
    ):
        stride = student.config.stride
        overlap = -(-overlap // stride) * stride
        self.smallest_tile = max(-(-SMALLEST_TILE // stride) * stride, overlap + stride)
        if isinstance(tile, int):
            if tile < self.smallest_tile:
                raise RestoreError(
                    f"--tile {tile}: must be at least {self.smallest_tile} with an overlap of {overlap} pixels"
                )
            tile = tile // stride * stride
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.student, self.statistics = restoring(student.eval().to(self.device))
        self.dtype, self.tile, self.overlap = getattr(torch, dtype), tile, overlap
        self.batch, self.refine, self.strength = batch, refine, strength
        self.stride, self._resident = stride, resident_bytes()
        self._bytes: Callable[[int], float] | None = None

    def __call__(self, lq: np.ndarray, on_tile: Callable[[int, int], Any] | None = None) -> Restored:
        """Restore; `on_tile(done, total)` is called after each forward. Raises `RestoreError` when memory ends."""
        height, width = lq.shape[1:]
        # Mirrored, not black as in the network itself: black would cost the last rows 2 to 5 dB.
        short = [max(SMALLEST_SIDE - side, 0) or -side % self.stride for side in (height, width)]
        padded = np.pad(lq, ((0, 0), (0, short[0]), (0, short[1])), mode="symmetric") if any(short) else lq
        tile = self.choose_tile(*padded.shape[1:])
        while True:
            try:
                with torch.inference_mode(), self._autocast():
                    image, prompts, tiles = self._restore(padded, tile, on_tile)
                if not np.isfinite(image).all():
                    lower = "; use --dtype float32" if self.dtype != torch.float32 else "; is the model damaged?"
                    raise RestoreError(f"the result has pixels that are not finite{lower}")
                image = lq + self.strength * (image[:, :height, :width].clip(0, 1) - lq)
                return Restored(image, prompts, tiles)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                    raise
                smaller = min(tile or max(height, width), 2048) // 2 // self.stride * self.stride
                smaller = max(self.smallest_tile, smaller)
                if self.tile != "auto" or tile == smaller:
                    raise RestoreError(
                        f"out of memory at {width}x{height} on {self.device}; use tiles (--tile auto, eval.tile: auto)"
                    ) from None
                tile = smaller

    def choose_tile(self, height: int, width: int) -> int | None:
        """The tile's side for an image of this size, or None for the whole image."""
        if self.tile == "off":
            return None
        if self.tile != "auto":
            return None if height * width <= self.tile**2 else self.tile
        if height * width <= 256**2:
            return None  # small enough anywhere; counting the memory would take longer than restoring
        budget = USABLE * self.free_bytes()
        indexable = self.device.type == "cpu" or height * width <= LARGEST_WHOLE_ON_GPU
        if indexable and self._forward_bytes(height * width) <= budget:
            return None
        tile = LARGEST_AUTO_TILE.get(self.device.type, 1024)
        while tile > max(SMALLEST_TILE, 2 * self.overlap) and self._forward_bytes(self.batch * tile**2) > budget:
            tile -= 64
        return max(tile, self.smallest_tile)

    def free_bytes(self) -> int:
        """What the next image may use: what is free, and what this process kept of the memory of images before."""
        kept = max(resident_bytes() - self._resident, 0) if self.device.type == "cpu" else 0
        return available_bytes(self.device) + kept

    def _forward_bytes(self, pixels: int) -> float:
        self._bytes = self._bytes or forward_bytes(self.student)
        return self._bytes(pixels)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _restore(
        self, lq: np.ndarray, tile: int | None, on_tile: Callable[[int, int], Any] | None
    ) -> tuple[np.ndarray, Prompts, int]:
        if tile is None or lq.shape[1] * lq.shape[2] <= tile**2:
            restored, prompts = self.student(self._tensor(lq[None]), return_prompts=True)
            if on_tile:
                on_tile(1, 1)
            return restored[0].float().cpu().numpy(), prompts, 1
        places = list(plan_tiles(lq.shape[1], lq.shape[2], tile, self.overlap, self.stride))
        done, total = 0, len(places) * (1 + self.refine)

        def advance(tiles: int) -> None:
            nonlocal done
            done += tiles
            if on_tile:
                on_tile(done, total)

        out = np.full(lq.shape, 0, np.float32)  # taken from the system now: what is too little fails before the work
        try:
            prompts = self._of_sample(lq, tile)
            for _ in range(self.refine):
                self._refine(lq, tile, prompts, advance)
            for start in range(0, len(places), self.batch):
                group = places[start : start + self.batch]
                tiles = self._tensor(np.stack([lq[:, rows, columns] for rows, columns, _ in group]))
                restored = self.student(tiles, prompts=prompts).float().cpu().numpy()
                for (rows, columns, weight), piece in zip(group, restored, strict=True):
                    out[:, rows, columns] += piece * weight
                advance(len(group))
        finally:
            self.statistics.stop()
        return out, prompts, len(places)

    def _of_sample(self, lq: np.ndarray, tile: int) -> Prompts:
        """What the tiles share, prompts and `statistics`, from samples of the image at native resolution."""
        prompts = None
        if tile < PROMPT_SIDE:
            prompts = self.student.encode_prompts(self._tensor(_sample(lq, PROMPT_SIDE, self.stride)[None]))
        self.statistics.start()
        sample = self._tensor(_sample(lq, max(tile, SAMPLE_SIDE), self.stride)[None])
        return self.student(sample, prompts=prompts, return_prompts=True)[1]

    def _refine(self, lq: np.ndarray, tile: int, prompts: Prompts, advance: Callable[[int], None]) -> None:
        """Sum `statistics` up over all pixels.

        Each block sees what the blocks before it make of the statistics known until now, so once is not exact, but
        each time leaves a small part of the error (benchmarks/RESULTS.md).
        """
        for rows, columns, *core in plan_cores(lq.shape[1], lq.shape[2], tile, self.overlap, self.stride):
            self.statistics.window = (rows.stop - rows.start, *core)
            self.student(self._tensor(lq[None, :, rows, columns]), prompts=prompts)
            advance(1)
        self.statistics.settle()

    def _tensor(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).to(self.device)


def _sample(lq: np.ndarray, side: int, stride: int) -> np.ndarray:
    return lq if lq.shape[1] * lq.shape[2] <= side**2 else mosaic(lq, side, stride)
