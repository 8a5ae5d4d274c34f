"""Countries: the sender reads at which landmark a person is, the receiver's prompt queries the country."""

import csv
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from latentcomm.tasks.base import Item, Task, Template

SenderForm = Literal["sentence", "entity", "primed"]
Fame = Literal["famous", "obscure"]


def countries(
    *,
    template: Template = "raw",
    sender_form: SenderForm = "primed",
    fame: Fame | None = None,
    names: tuple[str, ...] = ("Alice",),
) -> Task:
    """Real landmarks in about a hundred countries, one item each; the answer is the sovereign country.

    The sender reads, by `sender_form`:

    - "sentence": "Alice is at the Colosseum."
    - "entity": "the Colosseum"
    - "primed": "Alice is at the Colosseum. Alice is in the country of", so that its last token, too, is the one
      before the country. With a chat template it ends in the receiver's question instead.

    The receiver reads "Alice is in the country of", or as a chat turn "Which country is Alice in? Answer with the name
    of the country only."; the skyline model reads the sentence and then the receiver's text. Choices are " Italy" with
    raw text and "Italy" with chat, where a reply starts without a space. `names` are the persons, one a landmark in
    rotation; `fame=None` takes famous and obscure landmarks. The tags are fame, country and landmark; splits preserve
    fame's share.

    Definition of the task: Ramesh and Li 2025, arXiv:2501.14082; the landmarks are this package's own.

    Raises:
        ValueError: no names, or an empty one.

    >>> task = countries(fame="famous")
    >>> task.items[0].sender, task.items[0].choice
    ('Alice is at the Colosseum. Alice is in the country of', ' Italy')
    """
    if not names or not all(name.strip() for name in names):
        raise ValueError(f"names are {names!r}; give at least one, and none empty")
    known = _read_countries()
    items = tuple(
        _item(landmark, known[landmark.country], names[row % len(names)], template, sender_form)
        for row, landmark in enumerate(_read_landmarks(known))
        if fame is None or landmark.fame == fame
    )
    return Task(
        name="countries",
        items=items,
        candidates=tuple(_choice(country, template) for country in known.values()),
        template=template,
        settings={"template": template, "sender_form": sender_form, "fame": fame, "names": names},
        strata=("fame",),
    )


@dataclass(frozen=True)
class _Country:
    aliases: tuple[str, ...]
    choice: str


@dataclass(frozen=True)
class _Landmark:
    name: str
    country: str
    fame: str
    part: str


def _item(landmark: _Landmark, country: _Country, person: str, template: Template, sender_form: SenderForm) -> Item:
    sentence = f"{person} is at {landmark.name}."
    receiver = {
        "raw": f"{person} is in the country of",
        "chat": f"Which country is {person} in? Answer with the name of the country only.",
    }[template]
    skyline = f"{sentence} {receiver}"
    return Item(
        id=_slug(landmark.name),
        sender={"sentence": sentence, "entity": landmark.name, "primed": skyline}[sender_form],
        receiver=receiver,
        skyline=skyline,
        answers=country.aliases + ((landmark.part,) if landmark.part else ()),
        choice=_choice(country, template),
        tags={"fame": landmark.fame, "country": landmark.country, "landmark": landmark.name},
    )


def _choice(country: _Country, template: Template) -> str:
    return country.choice if template == "raw" else country.choice.strip()


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).replace("ħ", "h").replace("Ħ", "H").encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.casefold()).strip("-")


def _read_countries() -> dict[str, _Country]:
    return {
        row["country"]: _Country(aliases=tuple(row["aliases"].split("|")), choice=row["choice"])
        for row in _rows("country_names.csv")
    }


def _read_landmarks(known: dict[str, _Country]) -> list[_Landmark]:
    landmarks = [
        _Landmark(name=row["landmark"], country=row["country"], fame=row["fame"], part=row["part"])
        for row in _rows("countries.csv")
    ]
    unnamed = sorted({landmark.country for landmark in landmarks} - set(known))
    if unnamed:
        raise RuntimeError(f"countries.csv has {unnamed}, which country_names.csv does not name; add them there")
    return landmarks


def _rows(file_name: str) -> Iterator[dict[str, str]]:
    with resources.files("latentcomm.tasks").joinpath(file_name).open(encoding="utf-8") as file:
        yield from csv.DictReader(file)
