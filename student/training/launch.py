"""student/train.py under `accelerate launch`, as `dvc repro train` and `teachonce train` start it.

    python -m student.training.launch [the options of student/train.py]

What `accelerate config` wrote counts, as it does for the launcher itself. Where nothing was written, every GPU of this
machine trains, as with the launcher itself; but it is told so, and has no list of defaults to print. After Ctrl-C or
SIGTERM the trainer saves and says so, and this command ends with 130 or 143: a stage of DVC that was stopped has not
been done.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import psutil


def defaults(gpus: int) -> list[str]:
    """What `accelerate launch` would choose, and print, by itself on a machine with so many GPUs."""
    several = ["--multi_gpu"] if gpus > 1 else []
    chosen = {"num_processes": max(1, gpus), "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    return [*several, *(part for name, value in chosen.items() for part in (f"--{name}", str(value)))]


def main(argv: list[str] | None = None) -> int:
    stopped: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)  # the trainer gets the terminal's signal too, and needs a moment to save
        if number == signal.SIGTERM:  # of a container or a scheduler: to this process alone
            for trainer in psutil.Process().children():
                trainer.terminate()

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    import torch
    from accelerate.commands.config import default_config_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException

    chosen = [] if os.path.isfile(default_config_file) else defaults(torch.cuda.device_count())
    script = str(Path(__file__).parents[1] / "train.py")
    args = launch_command_parser().parse_args(["--quiet", *chosen, script, *(sys.argv[1:] if argv is None else argv)])
    try:
        if not stopped:
            launch_command(args)
        code = 0
    except SignalException as several_gpus:
        stopped.append(several_gpus.sigval)
    except SystemExit as failed:
        code = int(failed.code or 0)
    return 128 + stopped[0] if stopped else code


if __name__ == "__main__":
    sys.exit(main())
