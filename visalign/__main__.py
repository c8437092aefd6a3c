"""`visalign` and `python -m visalign`: run a command and turn errors into exit codes.

0 is done, 1 the run failed, 2 the input was wrong, 130 interrupted. A wrong input is one message, without a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from visalign.cli import app, with_resume_value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` default to those of the process."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(with_resume_value(given))
    except (ValueError, RuntimeError) as error:
        code, message = explain(error)
        print(f"visalign: {message}", file=sys.stderr)
        sys.exit(code)


def explain(error: ValueError | RuntimeError) -> tuple[int, str]:
    """Exit code and message of an expected error; any other is raised again, with its traceback."""
    import torch  # a command that raised has loaded it

    from visalign.types import InputError, RunError

    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, RunError):
        return 1, str(error)
    if isinstance(error, torch.OutOfMemoryError):
        advice = "lower train.micro_batch or evaluation.batch, or set model.gradient_checkpointing=true"
        return 1, f"out of GPU memory: {advice}; visalign plan CONFIG --measure shows what is needed. {error}"
    raise error


if __name__ == "__main__":
    main()
