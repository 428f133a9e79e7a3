"""The command `teachonce`: every command of the project by one word.

    teachonce caption | restore | train | eval | compare | report | index | embed | prepare | samples | ablate
    teachonce export | convert | demo | shards

`teachonce VERB --help` explains each. `python -m student.restore` and its like are the same commands; this one
also works where the folder you stand in holds a `pipeline/` or a `student.py` of your own.
"""

import os
import runpy
import sys

MODULES = {
    **{verb: f"pipeline.{verb}" for verb in "samples index caption embed report ablate prepare".split()},
    **{verb: f"student.{verb}" for verb in "eval compare restore export convert demo".split()},
    "train": "student.training.launch",  # in processes of its own, as many as `accelerate config` says
    "shards": "shards",
}
EXTRA_OF = {"pipeline": "pipeline", "student": "student", "shards": "all"}


def main() -> None:
    """Entry point of the console script."""
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a process does that the pipe's signal ended


def _run() -> None:
    verb, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if verb in ("-h", "--help", "help"):
        print(__doc__.strip())
        return
    if verb not in MODULES:
        raise SystemExit(f"teachonce: no command '{verb}'; there are: {' '.join(sorted(MODULES))}")
    module = MODULES[verb]
    sys.argv[1:] = rest
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("pipeline", "student", "teacher", "shards"):
            raise
        extra = EXTRA_OF[module.split(".")[0]] if verb not in ("export", "demo") else verb
        raise SystemExit(
            f'teachonce {verb}: the package {error.name} is missing; pip install "teachonce[{extra}]"'
        ) from None


if __name__ == "__main__":
    main()
