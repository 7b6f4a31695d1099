"""Every error a user of kosbert-ray can meet, one class for each thing they can do something about.

KosbertError
├── UsageError            an option or a config value is wrong: change the command            (exit 2)
├── InputError            the corpus cannot be read as asked: fix the file or the column      (exit 1)
│   ├── InputChanged      a file is no longer what was planned: plan again                    (exit 1)
│   └── InputBroken       a file is broken from some point on: what came before it is good    (exit 1)
├── ModelError            the model folder cannot be loaded or is unsupported                 (exit 1)
├── StorageError          a store refused or is not there: fix the address or the credentials (exit 1)
├── FingerprintMismatch   the output belongs to another job: use another output               (exit 1)
├── JobFailed             the run itself broke (a worker, Ray, a resource)                    (exit 1)
├── TooManyRejected       more rows were rejected than max_rejected allows                    (exit 3)
├── VerifyFailed          an output is not what its job and its input say                     (exit 1)
└── QualityLost           less quality than --max-drop or --least allows                       (exit 1)

They are raised where the cause is known and caught once, in ``cli.py``, which prints their single line.
"""

from collections.abc import Sequence

SHOWN_NAMES = 3


class KosbertError(Exception):
    """Root of the tree. Its text is one line that names the culprit and says what to do."""

    exit_code = 1


class UsageError(KosbertError):
    """A command-line option or a config value is wrong."""

    exit_code = 2


class InputError(KosbertError):
    """An input file, a column or a row cannot be read as asked."""


class InputChanged(InputError):
    """An input file was changed or removed since the plan was made."""


class InputBroken(InputError):
    """An input file is broken from some point on, by its content alone; the rows before that point are good."""


class ModelError(KosbertError):
    """A model folder is missing, broken or of an unsupported kind."""


class StorageError(KosbertError):
    """A file system or an object store refused, or holds no such thing."""


class FingerprintMismatch(KosbertError):
    """The output directory holds the vectors of a job with another fingerprint."""


class JobFailed(KosbertError):
    """The distributed run ended before all slices were committed."""


class TooManyRejected(KosbertError):
    """The run stopped early: more rows were rejected than ``max_rejected`` allows."""

    exit_code = 3


class VerifyFailed(KosbertError):
    """``verify`` found something wrong with an output."""


class QualityLost(KosbertError):
    """``evaluate`` measured a larger loss than ``--max-drop`` allows, or less than ``--least``."""


def described(error: BaseException) -> str:
    """``Type: first line`` of an error that is not ours."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The error's text as one line, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown_names(names: Sequence[str], quoted: bool = False) -> str:
    """The first few of many names, for a message."""
    shown = ", ".join(map(repr, names[:SHOWN_NAMES]) if quoted else names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else shown
