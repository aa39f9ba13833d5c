"""The two ways a command can end badly; `main` turns them into exit codes."""


class LsmError(Exception):
    """The work could not be finished (exit code 1). The message is one sentence for the user."""

    exit_code = 1


class InputError(LsmError):
    """The user's input is wrong (exit code 2).

    The message names the file, column, row or key, says what is wrong with it and what to do.
    """

    exit_code = 2
