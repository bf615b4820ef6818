"""The two errors a person can cause, each one clear line; the command line turns them into its exit codes."""


class UsageError(Exception):
    """A configuration or a command that cannot work as given: nothing was started, exit code 2."""


class RunError(Exception):
    """Something that failed while running, or a run folder that cannot be used: exit code 1."""
