"""The command line in this process, as a test calls it."""

from visalign.__main__ import main


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of a command."""
    code = 0
    try:
        main(tuple(map(str, arguments)))
    except SystemExit as stop:
        code = stop.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err
