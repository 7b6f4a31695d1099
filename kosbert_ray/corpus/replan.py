"""Plans a corpus of which an output already holds a part, perhaps cut by another version or by other limits.

A file keeps the limits it was begun under. A fragment is done if it is whole under any cut; one that is half done under an
older cut is done again as a whole, so that slices of two cuts are never mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from kosbert_ray.corpus.fragments import Fragment, Limits, limits_of, plan
from kosbert_ray.corpus.listing import InputFile

FIRST_CUT = ""  # 0.1.0's


def replan(
    files: Iterable[InputFile],
    limits: Limits,
    newlines_in_values: bool,
    first_limits: Limits,
    begun: Mapping[tuple[str, str], Collection[str]],
    is_whole: Callable[[str], bool],
) -> Iterator[Fragment]:
    """The fragments of a corpus, each under the cut by which it is done or is to be done.

    Args:
        files: the corpus.
        limits: for files that are not begun.
        newlines_in_values: as in :func:`~kosbert_ray.corpus.fragments.plan`.
        first_limits: those of 0.1.0's cut, which does not name them.
        begun: by name and version of a file, the cuts of its committed slices.
        is_whole: whether all slices of a fragment, by its id, are committed.
    """
    for file in files:
        cuts = begun.get((file.name, file.version), ())
        if not cuts:
            yield from (replace(item, cut=limits.cut) for item in plan([file], limits, newlines_in_values))
            continue
        choices = []
        for held in dict.fromkeys(limits_of(cut) or first_limits for cut in sorted(cuts)):
            its_cuts = [cut for cut in sorted(cuts) if (limits_of(cut) or first_limits) == held]
            parts = [_settled(item, held, its_cuts, is_whole) for item in plan([file], held, newlines_in_values)]
            choices.append((sum(whole for _, whole in parts), [part for part, _ in parts]))
        # Two runs with other limits may have begun one file at once: the one that is further counts.
        yield from max(choices, key=lambda choice: choice[0])[1]


def _settled(
    fragment: Fragment, limits: Limits, cuts: Iterable[str], is_whole: Callable[[str], bool]
) -> tuple[Fragment, bool]:
    for cut in cuts:
        candidate = replace(fragment, cut=cut)
        if is_whole(candidate.id):
            return candidate, True
    return replace(fragment, cut=limits.cut), False
