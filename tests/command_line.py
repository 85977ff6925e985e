"""The console command inside this process."""

import signal


def status_of(arguments):
    """Exit status of `etsam ARGUMENTS`."""
    from etsam.cli.main import main

    before = signal.getsignal(signal.SIGINT)  # Lightning ignores further Ctrl-C for good
    try:
        main(arguments)
    except SystemExit as end:
        return end.code
    finally:
        signal.signal(signal.SIGINT, before)
    return 0
