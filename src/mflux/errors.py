"""What can go wrong in a way that the user can mend.

MfluxError            exit code 1   a model's content, the network, a licence, the disk, memory
|-- UsageError        exit code 2   something the user typed or named
|-- StoppedError      exit code 3   ended before its time by the battery; 130 by Ctrl-C
`-- ModelError        exit code 1   a checkpoint that is absent, damaged or of another kind
"""


class MfluxError(Exception):
    """Something the user can mend: what is wrong, and what to do.  The command line prints it without a traceback.

    `field` is the name of the argument at fault, where there is one: the library shows it as it is, the command line
    shows the flag that fills it.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "", field: str | None = None):
        self.problem, self.hint, self.field = problem, hint, field
        super().__init__(self.text(f"`{field}`: " if field else ""))

    def text(self, subject: str = "") -> str:
        """The message with its hint; `subject` says which argument it is about."""
        return f"{subject}{self.problem}" + (f"\n\nhint: {self.hint}" if self.hint else "")


class UsageError(MfluxError):
    """A request that cannot be carried out as it was made."""

    exit_code = 2


class StoppedError(MfluxError):
    """A run that ended before its time; what is finished is kept."""

    exit_code = 3


class ModelError(MfluxError):
    """A checkpoint that is absent, damaged or not what it should be."""
