"""Pictures of a folder with a table of names and facts, their questions, and divisions for fitting and testing."""

import csv
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

from latentcomm._core.files import expanded
from latentcomm._core.progress import say
from latentcomm.experiments.crossmodal.digits import INKS
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet, read_pictures, rotated
from latentcomm.experiments.crossmodal.questions import Question, answerable
from latentcomm.experiments.crossmodal.splits import OTHER_VIEWS, Part
from latentcomm.models.vision_preprocessing import BACKGROUND

TABLES = ("table.csv", "table.json")
"""File names of a folder's table; the pictures are in the same folder or in "pictures"."""
NEEDED = ("file", "name")
COUNTS = ("one", "two", "three", "four")
COLOUR_WORDS = {*INKS, "black", "white", "brown", "grey", "gray", "pink", "gold", "golden", "silver"}
"""A name with one of these words names a colour."""
FULL_INK = 200
"""The grey level, of 255, that becomes the pure ink: emoji are light, yellow ones lighter than most."""
COLUMN_QUESTIONS: Mapping[str, Question] = {
    question.fact: question
    for question in (
        Question("identity", "The picture shows", "name", name="name"),
        Question("identity", "The capital of the country in the picture is", "capital", name="capital"),
        Question("category", "The continent of the country in the picture is", "region", name="region"),
        Question("category", "What the picture shows is one of", "category", name="category"),
        Question("colour", "The colour of what the picture shows is", "colour", name="colour"),
        Question("count", "The number of things in the picture is", "count", name="count"),
        Question("position", "In the picture it stands at the", "position", name="position"),
    )
}
"""The question of each column; other columns are facts that custom questions may use."""
ROTATION, SMALLEST, LIGHT = 12.0, 0.8, (0.7, 1.3)
"""Of views: rotation in degrees either way, the smallest crop as a share of each side, and the brightness factors."""


def read_table(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a folder's table as strings: lists joined by "|", empty entries left out.

    Raises:
        ValueError: no such folder or table, a table that cannot be read, a row without file or name, or a file twice.
    """
    root = expanded(folder)
    path = next((root / name for name in TABLES if (root / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"there is no {' or '.join(TABLES)} in {root}; give a folder that has one with the columns "
            f"{' and '.join(NEEDED)}"
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            content: Any = json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); mend or replace it") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content) or not content:
        raise ValueError(f"{path} holds no rows; give at least one, with the columns {' and '.join(NEEDED)}")
    rows = [{str(key): text for key, value in row.items() if (text := _as_text(value))} for row in content]
    for number, row in enumerate(rows):
        if missing := [column for column in NEEDED if column not in row]:
            raise ValueError(f"row {number + 1} of {path} has no {missing[0]}; give every picture a file and a name")
    files = [row["file"] for row in rows]
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise ValueError(f"{path} names the file {twice!r} twice; leave one row out")
    return rows


def read_folder(
    folder: str | os.PathLike[str],
    *,
    n_pictures: int | None = None,
    caption: str = "{name}",
    seed: int = 0,
    skip_unreadable: bool = False,
) -> PictureSet:
    """The pictures of a folder's table with all their facts; `n_pictures` draws that many.

    Captions are made of facts; pictures of one name are a group, which no split divides. Of pictures with equal pixels
    one remains (see `PictureSet.distinct`) and the others are reported: equal pictures must not have different names
    on the two sides. A picture that cannot be read is an error, unless `skip_unreadable`: then it is reported.

    Raises:
        ValueError: what `read_table` refuses, a picture that cannot be read, or a caption of a fact that is missing.
    """
    root = expanded(folder)
    rows = read_table(root)
    where = root / "pictures" if (root / "pictures").is_dir() else root
    images = read_pictures([where / row["file"] for row in rows], skip_unreadable=skip_unreadable)
    pictures = []
    for row in rows:
        image = images.get(where / row["file"])
        if image is None:
            continue
        facts = {name: text for name, text in row.items() if name != "file"}
        try:
            text = caption.format(**facts)
        except KeyError as error:
            raise ValueError(
                f"{row['file']} has no {error.args[0]}, which the caption {caption!r} uses; give it one, or use "
                f"others of {', '.join(facts)}"
            ) from error
        except (IndexError, ValueError, AttributeError) as error:
            raise ValueError(
                f"the caption {caption!r} cannot be filled in ({error}); name columns in braces, such as {{name}}"
            ) from error
        pictures.append(Picture(row["file"], image, text, facts, f"name {row['name']}"))
    distinct = PictureSet(root.resolve().name, tuple(pictures)).distinct()
    if distinct.left_out:
        say(
            f"left out {len(distinct.left_out)} of {len(pictures)} pictures, each equal in every pixel to a remaining "
            f"one: {', '.join(distinct.left_out)}"
        )
    unread = tuple(row["name"] for row in rows if where / row["file"] not in images)
    distinct = replace(distinct, left_out=(*distinct.left_out, *unread))
    if n_pictures is None or n_pictures >= len(distinct):
        return distinct
    drawn = random.Random(f"folder:{seed}").sample(distinct.pictures, n_pictures)
    return replace(distinct, pictures=tuple(drawn))


def folder_questions(pictures: PictureSet, questions: Sequence[Question] | None = None) -> tuple[Question, ...]:
    """The questions that these pictures answer, each with all possible answers; by default those of their columns.

    Raises:
        ValueError: no question that has two different answers.
    """
    answered = []
    for question in COLUMN_QUESTIONS.values() if questions is None else questions:
        facts = {each.facts[question.fact].split("|")[0] for each in pictures if question.fact in each.facts}
        if len(facts) > 1:
            answers = question.answers or tuple(sorted(facts))
            answered.append(Question(question.type, question.ask, question.fact, answers, question.name))
    if not answered:
        raise ValueError(
            f"the pictures of {pictures.name!r} have two different answers to no question; give their table a "
            f"column of {', '.join(COLUMN_QUESTIONS)}"
        )
    return tuple(answered)


def views(picture: Picture, *, n: int, seed: int = 0) -> tuple[Picture, ...]:
    """Views of a picture, rotated, cropped and brightened at random; each in its own group, with the picture's facts.

    Raises:
        ValueError: fewer than one.

    >>> [each.id for each in views(Picture("a.png", Image.new("RGB", (8, 8)), "a"), n=2)]
    ['a.png view 0', 'a.png view 1']
    """
    if n < 1:
        raise ValueError(f"n is {n}; give at least one view")
    made = []
    for number in range(n):
        draw = random.Random(f"view:{seed}:{picture.id}:{number}")
        image = picture.image.rotate(
            draw.uniform(-ROTATION, ROTATION), resample=Image.Resampling.BILINEAR, fillcolor=BACKGROUND
        )
        width, height = (max(1, round(side * draw.uniform(SMALLEST, 1))) for side in image.size)
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        image = ImageEnhance.Brightness(image.crop((left, top, left + width, top + height))).enhance(
            draw.uniform(*LIGHT)
        )
        name = f"{picture.id} view {number}"
        made.append(Picture(name, image, picture.caption, picture.facts, name))
    return tuple(made)


def folder_parts(
    folder: str | os.PathLike[str] | PictureSet,
    *,
    questions: Sequence[Question] | None = None,
    n_views: int = 3,
    n_pictures: int | None = None,
    caption: str = "{name}",
    fitting_share: float = 0.7,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> tuple[Part, Part]:
    """Two parts: other views of pictures that maps are fitted on, and pictures that no map is fitted on.

    "other views": one view of every picture is for testing, and maps are fitted on the others. "new pictures": maps are
    fitted on views of one share of the pictures, and the rest are for testing, unchanged; no map is fitted to their
    names. The caption nearest to the output of the map is chosen among all names, including theirs. A part leaves out,
    and reports, the questions that no fitting picture answers or whose answer is the same for all test pictures.

    Raises:
        ValueError: fewer than two views, too few pictures for both sides, no question with answers on both sides, or
            what reading refuses.
    """
    if n_views < 2:
        raise ValueError(f"n_views is {n_views}, which leaves no view for testing; give at least two")
    if isinstance(folder, PictureSet):
        pictures = folder
    else:
        pictures = read_folder(
            folder, n_pictures=n_pictures, caption=caption, seed=seed, skip_unreadable=skip_unreadable
        )
    answerable = folder_questions(pictures, questions)
    names = tuple(dict.fromkeys(picture.caption for picture in pictures))
    order = random.Random(f"asked:{seed}").sample(pictures.pictures, len(pictures))
    seen = [views(picture, n=n_views, seed=seed) for picture in order]
    name = pictures.name
    known, new = pictures.split(seed=seed, fraction=fitting_share)
    known_views = [replace(view, group=each.group) for each in known for view in views(each, n=n_views - 1, seed=seed)]
    shown = random.Random(f"asked:{seed}").sample(new.pictures, len(new))

    def part(what: str, fitting: Sequence[Picture], testing: Sequence[Picture]) -> Part:
        sides = [PictureSet(name, tuple(side), pictures.left_out) for side in (fitting, testing)]
        answered = _answered(answerable, *sides)
        whole = f"{name}, {what}"
        if not answered:
            raise ValueError(f"{whole}: no question has answers on both sides of the split; fill in more of the table")
        if lost := [each.name for each in answerable if each not in answered]:
            say(f"{whole}: left out the questions {', '.join(lost)}; one side of the split has too few answers")
        return Part(whole, sides[0], sides[1], answered, captions=names)

    others = part(OTHER_VIEWS, [view for each in seen for view in each[1:]], [each[0] for each in seen])
    return others, part("new pictures", known_views, shown)


def _answered(questions: Sequence[Question], fitting: PictureSet, testing: PictureSet) -> tuple[Question, ...]:
    """The questions with an answer among the fitting pictures and two different ones among the test pictures."""
    answers = {question.fact: {each.facts.get(question.fact) for each in testing} - {None} for question in questions}
    return tuple(each for each in answerable(fitting, questions) if len(answers[each.fact]) > 1)


def counted_part(pictures: PictureSet, *, n_fitting: int, n_testing: int, seed: int = 0) -> Part:
    """Pictures with one to four copies of one thing in a square of cells: how many, and what; no name on both sides.

    Captions are the count and the name, "three cats" without the plural: names are not inflected. Each thing is in
    one test picture, so there are at most as many test pictures as things.

    Raises:
        ValueError: too few pictures for both sides.
    """
    sides = []
    for side, things, rng in _composed_of(pictures, "counted", n_fitting, n_testing, seed):
        made = []
        for number, drawn in enumerate(things):
            cells = sorted(rng.sample(range(4), number % 4 + 1))
            count = COUNTS[len(cells) - 1]
            edge = max(drawn.image.size)
            canvas = Image.new("RGB", (2 * edge, 2 * edge), BACKGROUND)
            for cell in cells:
                canvas.paste(drawn.image, (edge * (cell % 2), edge * (cell // 2)))
            facts = {"count": count, "name": drawn.facts["name"]}
            made.append(Picture(f"{side}-{number}", canvas, f"{count} {drawn.caption}", facts, drawn.group))
        sides.append(PictureSet(pictures.name, tuple(made)))
    count_of = Question("count", "The number of things in the picture is", "count", COUNTS)
    return Part(f"{pictures.name}, counted", sides[0], sides[1], (count_of,), "patches", 2)


def recoloured_part(pictures: PictureSet, *, n_fitting: int, n_testing: int, seed: int = 0) -> Part:
    """Pictures in one ink each, drawn at random, and the question of which ink; no name on both sides.

    Lightness is preserved (see `in_ink`), and the caption is the ink and the name: "red cat". Pictures whose name
    contains a colour are left out. Each thing is in one test picture, so there are at most as many as things.

    Raises:
        ValueError: too few pictures for both sides.
    """
    plain = [each for each in pictures if not COLOUR_WORDS & set(each.facts["name"].lower().split())]
    sides = []
    for side, things, rng in _composed_of(
        PictureSet(pictures.name, tuple(plain)), "recoloured", n_fitting, n_testing, seed
    ):
        made = []
        for number, drawn in enumerate(things):
            ink, name = rng.choice(list(INKS)), drawn.facts["name"]
            facts = {"colour": ink, "name": name}
            made.append(Picture(f"{side}-{number}", in_ink(drawn.image, ink), f"{ink} {name}", facts, drawn.group))
        sides.append(PictureSet(pictures.name, tuple(made)))
    colour = replace(COLUMN_QUESTIONS["colour"], answers=tuple(INKS))
    return Part(f"{pictures.name}, recoloured", sides[0], sides[1], (colour,))


def in_ink(image: Image.Image, ink: str) -> Image.Image:
    """The picture in shades of one of the inks of digits: black stays black, a light grey is the ink, white stays.

    >>> in_ink(Image.new("RGB", (1, 1), (FULL_INK,) * 3), "red").getpixel((0, 0))
    (255, 40, 40)
    >>> in_ink(Image.new("RGB", (1, 1), "white"), "red").getpixel((0, 0))
    (255, 255, 255)
    """
    return ImageOps.colorize(ImageOps.grayscale(image), "black", "white", mid=INKS[ink], midpoint=FULL_INK)


def _composed_of(
    pictures: PictureSet, what: str, n_fitting: int, n_testing: int, seed: int
) -> Iterator[tuple[str, list[Picture], random.Random]]:
    """For each side: its name, the pictures to compose from (no name on both sides), and its random generator."""
    known, new = pictures.split(seed=seed, fraction=0.7)
    for side, part, n in (("fit", known, n_fitting), ("test", new, min(n_testing, len(new)))):
        rng = random.Random(f"{what}:{side}:{seed}")
        yield side, rotated(part.pictures, n, rng), rng


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "|".join(str(each).strip() for each in value if str(each).strip())
    return str(value).strip()
