"""The errors of kosbert-ray, one class for each kind of remedy.

KosbertError
├── UsageError            an option or a config value is wrong: change the command              (exit 2)
├── InputError            the corpus cannot be read: fix the file or the column                 (exit 1)
│   ├── InputChanged      a file changed since it was planned: plan again                       (exit 1)
│   └── InputBroken       a file is broken from some point on: the rows before it are good      (exit 1)
├── ModelError            the model cannot be loaded or is not supported                        (exit 1)
├── StorageError          a store refused or is missing: fix the address or the credentials     (exit 1)
├── FingerprintMismatch   the output belongs to another job: choose another output              (exit 1)
├── JobFailed             the run failed (a worker, Ray, a resource)                            (exit 1)
│   └── DeviceBroken      the engine no longer works in this process: start another             (exit 1)
├── TooManyRejected       more rows were rejected than max_rejected allows                      (exit 3)
├── VerifyFailed          an output does not match its job or its input                         (exit 1)
└── QualityLost           lower quality than --max-drop or --least allows                       (exit 1)

Errors are raised where the cause is known and caught once, in ``cli/main.py``, which prints their single line.
"""

from collections.abc import Sequence

SHOWN_NAMES = 3


class KosbertError(Exception):
    """Base class. The message is one line that names the culprit and the remedy."""

    exit_code = 1


class UsageError(KosbertError):
    """A command-line option or a config value is wrong. Several wrong options have a line each."""

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class InputError(KosbertError):
    """An input file, a column or a row cannot be read."""


class InputChanged(InputError):
    """An input file changed or was removed since the plan was made."""


class InputBroken(InputError):
    """The content of an input file is broken from some point on; the rows before it are good."""


class ModelError(KosbertError):
    """A model is missing, broken or not supported."""


class StorageError(KosbertError):
    """A file system or an object store refused a request, or the file does not exist."""


class FingerprintMismatch(KosbertError):
    """The output belongs to a job with another fingerprint."""


class JobFailed(KosbertError):
    """The distributed run ended before all slices were committed."""


class DeviceBroken(JobFailed):
    """The GPU, or the engine, no longer works in this process; only a new process can use it."""


class TooManyRejected(KosbertError):
    """The run stopped early: more rows were rejected than ``max_rejected`` allows."""

    exit_code = 3


class VerifyFailed(KosbertError):
    """``verify`` found problems in an output."""


class QualityLost(KosbertError):
    """``evaluate`` measured lower quality than ``--max-drop`` or ``--least`` allows."""


def without_remedy(error: KosbertError) -> str:
    """The part of an error's message that says what is wrong."""
    return str(error).partition(";")[0]


def described(error: BaseException) -> str:
    """``Type: first line`` of any other exception."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown_names(names: Sequence[str], quoted: bool = False) -> str:
    """Joins the first few names for a message."""
    shown = ", ".join(map(repr, names[:SHOWN_NAMES]) if quoted else names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else shown


def require_one_of(name: str, value: object, known: Sequence[object]) -> None:
    """Raises UsageError if an argument has none of some values; None among them is not named."""
    if value not in known:
        names = ", ".join(str(item) for item in known if item is not None)
        raise UsageError(f"{name}: {value!r} is not known; choose one of {names}")
