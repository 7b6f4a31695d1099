"""Every error a user of kosbert-ray can meet, one class for each thing they can do something about.

KosbertError
├── UsageError            an option or a config value is wrong: change the command            (exit 2)
├── InputError            the corpus cannot be read as asked: fix the file or the column      (exit 1)
├── ModelError            the model folder cannot be loaded or is unsupported                 (exit 1)
├── StorageError          a store refused or is not there: fix the address or the credentials (exit 1)
├── FingerprintMismatch   the output belongs to another job: use another output               (exit 1)
└── JobFailed             the run itself broke (a worker, Ray, a resource)                    (exit 1)

They are raised where the cause is known and caught once, in ``cli.py``, which prints their single line.
"""


class KosbertError(Exception):
    """Root of the tree. Its text is one line that names the culprit and says what to do."""

    exit_code = 1


class UsageError(KosbertError):
    """A command-line option or a config value is wrong."""

    exit_code = 2


class InputError(KosbertError):
    """An input file, a column or a row cannot be read as asked."""


class ModelError(KosbertError):
    """A model folder is missing, broken or of an unsupported kind."""


class StorageError(KosbertError):
    """A file system or an object store refused, or holds no such thing."""


class FingerprintMismatch(KosbertError):
    """The output directory holds the vectors of a job with another fingerprint."""


class JobFailed(KosbertError):
    """The distributed run ended before all slices were committed."""
