"""Every error that this package raises on purpose.

Each takes one message, so that it pickles across Ray. A message names the field, the rule, the
value and the fix, as far as there are any.
"""


class VidgenError(Exception):
    """Base of the errors below; anything else that escapes is a defect."""


class ConfigError(VidgenError):
    """The configuration, or the machine it is to run on, cannot do what was asked."""


class RequestError(VidgenError):
    """One request is wrong: its image, its adapter or one of its fields."""


class EngineError(VidgenError):
    """The model could not make this clip."""


class OutOfMemory(EngineError):
    """The device ran out of memory; the message says what to change."""


class ClipCancelled(EngineError):
    """The caller cancelled the clip between two steps."""


class ClipTimeout(EngineError):
    """The clip took longer than its time limit."""


class ArtifactError(VidgenError):
    """The output store cannot be written or read."""


class StoreError(VidgenError):
    """The job store cannot be read or written."""


class DatasetError(VidgenError):
    """A dataset or its annotations are wrong."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived. Not an error: whatever is committed stays."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
