"""Plans a run: splits the files of a corpus into fragments.

If an output already holds part of the corpus, a file keeps the limits under which it was started. A fragment is done if
it is complete under any cut; one that is incomplete under an older cut is redone as a whole, so cuts never mix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.table import format_of
from kosbert_ray.corpus.fragments import Fragment, Limits, limits_of


def plan(files: Iterable[InputFile], limits: Limits, newlines_in_values: bool = False) -> Iterator[Fragment]:
    """Splits files into fragments, in the order of the files. Empty files have none.

    Args:
        files: the files; Parquet files with their row groups.
        limits: size of a slice, and so about that of a fragment.
        newlines_in_values: whether a quoted CSV value may span lines; if so, a CSV file is one fragment.
    """
    for file in files:
        yield from format_of(file).fragments(file, limits, newlines_in_values)


def replan(
    files: Iterable[InputFile],
    limits: Limits,
    newlines_in_values: bool,
    first_limits: Limits,
    started: Mapping[tuple[str, str], Collection[str]],
    is_complete: Callable[[str], bool],
) -> Iterator[Fragment]:
    """Splits files that an output already holds in part. Each fragment gets the cut under which it was or will be done.

    Args:
        files: the corpus.
        limits: for files that have not been started.
        newlines_in_values: as in :func:`plan`.
        first_limits: limits of the cut of 0.1.0, which does not name them.
        started: the cuts of a file's committed slices, by its name and version.
        is_complete: whether all slices of the fragment with an id are committed.
    """
    for file in files:
        cuts = started.get((file.name, file.version), ())
        if not cuts:
            yield from (item.with_cut(limits.cut) for item in plan([file], limits, newlines_in_values))
            continue
        choices = []
        for held in dict.fromkeys(limits_of(cut) or first_limits for cut in sorted(cuts)):
            its_cuts = [cut for cut in sorted(cuts) if (limits_of(cut) or first_limits) == held]
            parts = [_settled(item, held, its_cuts, is_complete) for item in plan([file], held, newlines_in_values)]
            choices.append((sum(complete for _, complete in parts), [part for part, _ in parts]))
        # Two runs with different limits may have started a file at once: the one that got further wins.
        yield from max(choices, key=lambda choice: choice[0])[1]


def _settled(
    fragment: Fragment, limits: Limits, cuts: Iterable[str], is_complete: Callable[[str], bool]
) -> tuple[Fragment, bool]:
    """The fragment with its cut, and whether it is complete."""
    for cut in cuts:
        candidate = fragment.with_cut(cut)
        if is_complete(candidate.id):
            return candidate, True
    return fragment.with_cut(limits.cut), False
