"""`latentcomm join`: bring the records together that parts of a run wrote to several folders."""

from collections.abc import Sequence
from inspect import cleandoc

__all__ = ["join"]


def join(arguments: Sequence[str]) -> None:
    """Bring the records that parts of one run wrote to several folders together in the first of them.

    The run itself, without --part and with the first folder as --out, then writes the result.

    Raises:
        ValueError: fewer than two folders, one without saved work, or one of another run.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: latentcomm join OUT FOLDER ...\n\n{cleandoc(join.__doc__ or '').partition('Raises:')[0].strip()}"
        )
        return
    if options := [each for each in arguments if each.startswith("-")]:
        raise ValueError(f"join takes folders alone, and was given {options[0]}; write latentcomm join OUT FOLDER ...")
    from latentcomm.experiments.join import join_records

    out, *folders = arguments
    n_new, n_there = join_records(out, folders)
    print(f"{out}: {n_new} records came from {', '.join(folders)}, {n_there} were there already")
