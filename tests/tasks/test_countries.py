"""The landmarks: their countries against an independent list, and that no name gives its country away."""

import csv
import re
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

import latentcomm.tasks
from latentcomm.tasks import countries, is_correct

FOLDER = Path(latentcomm.tasks.__file__).parent
LANDMARKS = list(csv.DictReader((FOLDER / "countries.csv").read_text(encoding="utf-8").splitlines()))
NAMES = {
    row["country"]: row
    for row in csv.DictReader((FOLDER / "country_names.csv").read_text(encoding="utf-8").splitlines())
}

# Words of a landmark's name, and the state under which UNESCO's World Heritage List files the property it belongs to.
WORLD_HERITAGE = """
    Timgad Djémila = Algeria; Manos Ischigualasto = Argentina; Geghard = Armenia
    Barrier Uluru Purnululu Sydney_Opera = Australia; Schönbrunn = Austria; Plantin-Moretus = Belgium
    Samaipata Tiwanaku = Bolivia; Mostar Sokolović = Bosnia and Herzegovina; Okavango Tsodilo = Botswana
    Redeemer Lençóis = Brazil; Rila Madara = Bulgaria; Angkor Banteay = Cambodia; Meadows Head-Smashed-In Banff = Canada
    Easter Humberstone = Chile
    Forbidden Terracotta Longmen Leshan Heaven Badaling = China
    Diocletian's Dubrovnik Plitvice Euphrasian = Croatia; Viñales = Cuba; Charles Sedlec = Czech Republic
    Jelling = Denmark; Galápagos = Ecuador; Giza Simbel Kings Karnak Bent Hitan = Egypt; Lalibela Fasil = Ethiopia
    Versailles Mont-Saint-Michel Eiffel Cordouan = France; Svetitskhoveli = Georgia
    Cologne Wieskirche Völklingen = Germany; Elmina = Ghana; Acropolis Delphi Meteora Mystras Vikos = Greece
    Tikal Quiriguá = Guatemala; Pannonhalma = Hungary; Taj Ajanta Qutb Vav = India
    Borobudur Prambanan Krakatoa = Indonesia
    Naqsh-e Chogha = Iran; Babylon Ur = Iraq; Newgrange = Ireland; Masada Megiddo = Israel
    Colosseum Pisa Pompeii Scrovegni = Italy; Himeji Kinkaku-ji Fuji Tomioka = Japan; Petra Amra = Jordan
    Fort_Jesus = Kenya; Baalbek = Lebanon; Leptis Sabratha = Libya; Tsingy = Madagascar; Mulu = Malaysia
    Djenné Askia = Mali; Ħaġar Ġgantija = Malta; Teotihuacan Chichen Albán Uxmal = Mexico; Benhaddou Volubilis = Morocco
    Bagan = Myanmar; Twyfelfontein Sossusvlei = Namibia; Boudhanath Changu = Nepal; Kinderdijk Schröder = Netherlands
    Milford = New Zealand; Osun-Osogbo = Nigeria; Geirangerfjord = Norway; Bahla = Oman; Mohenjo-daro = Pakistan
    Machu Nazca = Peru; Banaue = Philippines; Wawel Malbork Wieliczka = Poland; Belém Pena Batalha = Portugal
    Voroneț = Romania; Kremlin Basil's Red_Square Hermitage Baikal Kizhi Solovetsky = Russia; Mada'in = Saudi Arabia
    Gorée = Senegal; Studenica = Serbia; Spiš = Slovakia; Škocjan = Slovenia; Robben = South Africa
    Bulguksa = South Korea; Alhambra Sagrada Güell Hercules Médulas = Spain; Sigiriya Polonnaruwa = Sri Lanka
    Meroë Barkal = Sudan; Drottningholm = Sweden; Gall Jungfraujoch Landwasser = Switzerland
    Serengeti Ngorongoro Kilimanjaro Kilwa = Tanzania; Carthage Kairouan Dougga = Tunisia
    Hagia Topkapi Pamukkale Cappadocia Ephesus = Turkey; Stonehenge Skara Pontcysyllte Edinburgh = United Kingdom
    Liberty Grand_Canyon Cahokia = United States; Registan Itchan = Uzbekistan; Sistine Peter's = Vatican City
    Angel = Venezuela; Ha_Long Sơn = Vietnam
"""

# Adjectives and peoples that do not begin like their country; the others are caught by the first four letters.
IRREGULAR = {
    "Cambodia": "khmer",
    "China": "sino",
    "Czech Republic": "bohemia",
    "Denmark": "danish",
    "Ethiopia": "abyssinia",
    "Finland": "suomi",
    "France": "french",
    "Germany": "teutonic deutsche",
    "Greece": "hellenic",
    "Hungary": "magyar",
    "Iran": "persia",
    "Ireland": "gaelic",
    "Japan": "nippon",
    "Myanmar": "burmese",
    "Netherlands": "dutch",
    "Peru": "inca",
    "Philippines": "filipino",
    "Poland": "polish polska",
    "Spain": "hispanic",
    "Sri Lanka": "sinhala",
    "Switzerland": "helvetic",
    "Thailand": "siam",
    "Turkey": "ottoman anatolia",
    "United Kingdom": "english british anglo",
}

# Words in the long names of states that say nothing of which.
COMMON = {"united", "states", "state", "kingdom", "republic", "great", "city", "south", "north", "new", "and", "the"}


def plain(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'s)?", plain(text))


def gives_away(landmark: str, country: str, aliases: str) -> bool:
    """A word of the landmark that begins with the first four letters of a telling word of the country's names."""
    telling = [word for word in words(aliases) if word not in COMMON and len(word) > 2]
    telling += IRREGULAR.get(country, "").split()
    return any(word.startswith(stem[:4]) for word in words(landmark) for stem in telling)


def world_heritage() -> list[tuple[str, str]]:
    pairs = []
    for entry in WORLD_HERITAGE.replace("\n", ";").split(";"):
        if entry.strip():
            landmarks, state = entry.split(" = ")
            pairs += [(name.replace("_", " "), state.strip()) for name in landmarks.split()]
    return pairs


class TestTheFacts:
    def test_they_agree_with_the_world_heritage_list(self) -> None:
        wrong, seen = [], set()
        for name, state in world_heritage():
            for row in LANDMARKS:
                if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", row["landmark"]):
                    seen.add(row["landmark"])
                    if row["country"] != state:
                        wrong.append((row["landmark"], row["country"], state))
        assert wrong == []
        assert len(seen) >= 140  # the list does cover the table, it does not pass by matching nothing

    def test_only_landmarks_of_the_united_kingdom_accept_its_parts(self) -> None:
        parts = {row["landmark"]: row["part"] for row in LANDMARKS if row["part"]}
        assert {row["landmark"] for row in LANDMARKS if row["country"] == "United Kingdom"} == set(parts)
        assert set(parts.values()) == {"England", "Scotland", "Wales"}
        assert parts["Loch Ness"] == parts["Skara Brae"] == "Scotland"
        assert parts["Stonehenge"] == parts["Sutton Hoo"] == "England"
        assert parts["the Pontcysyllte Aqueduct"] == "Wales"

    def test_no_landmark_stands_on_a_border_or_in_disputed_land(self) -> None:
        shared = (
            "Niagara Iguaz Victoria Everest Blanc Matterhorn Titicaca Zugspitze Itaipu Ohrid Öresund CERN Białowieża "
            "Dead_Sea Perito Fitz Roraima Kaieteur Preah_Vihear Jerusalem Western_Wall Hebron Bethlehem Golan Potala "
            "Crimea Swallow's Livadia Kosovo Taipei Hong_Kong Kashmir Abkhazia Laas_Geel Socotra Blue_Hole"
        )
        names = [name.replace("_", " ") for name in shared.split()]
        assert [row["landmark"] for row in LANDMARKS if any(name in row["landmark"] for name in names)] == []


class TestTheTable:
    def test_it_is_large_and_balanced(self) -> None:
        fame = Counter(row["fame"] for row in LANDMARKS)
        per_country = Counter(row["country"] for row in LANDMARKS)
        assert sum(fame.values()) >= 200
        assert set(fame) == {"famous", "obscure"}
        assert 0.45 < fame["famous"] / sum(fame.values()) < 0.55
        assert len(per_country) >= 50
        assert max(per_country.values()) <= 10
        assert min(per_country.values()) >= 2  # so that another message with the same answer exists

    def test_most_obscure_landmarks_lie_in_countries_with_famous_ones(self) -> None:
        with_famous = {row["country"] for row in LANDMARKS if row["fame"] == "famous"}
        obscure = [row["country"] in with_famous for row in LANDMARKS if row["fame"] == "obscure"]
        assert sum(obscure) / len(obscure) > 0.6

    def test_no_landmark_stands_twice(self) -> None:
        keys = sorted(re.sub(r"^the ", "", plain(row["landmark"])) for row in LANDMARKS)
        assert len(set(keys)) == len(keys)
        assert [pair for pair in pairwise(keys) if pair[1].startswith(pair[0])] == []

    def test_every_cell_is_clean_text(self) -> None:
        for row in [*LANDMARKS, *NAMES.values()]:
            assert None not in row
            for column, cell in row.items():
                assert unicodedata.is_normalized("NFC", cell)
                assert "  " not in cell
                assert cell == (f" {cell.strip()}" if column == "choice" else cell.strip())

    def test_every_country_is_named_and_every_name_is_used(self) -> None:
        assert {row["country"] for row in LANDMARKS} == set(NAMES)
        for country, row in NAMES.items():
            assert row["aliases"].split("|")[0] == country
            assert row["choice"] == f" {country}"

    def test_no_landmark_gives_its_country_away(self) -> None:
        leaks = [
            row["landmark"]
            for row in LANDMARKS
            if gives_away(row["landmark"], row["country"], NAMES[row["country"]]["aliases"])
        ]
        assert leaks == []

    @pytest.mark.parametrize(
        ("landmark", "country"),
        [
            ("the Great Wall of China", "China"),
            ("the Chinese Garden", "China"),
            ("the Singapore Flyer", "Singapore"),
            ("Mexico City Cathedral", "Mexico"),
            ("the British Museum", "United Kingdom"),
            ("the French Quarter", "France"),
            ("the Burj Al Arab", "United Arab Emirates"),
            ("the Egyptian Museum", "Egypt"),
            ("Persepolis and the Persian Gate", "Iran"),
        ],
    )
    def test_the_search_for_leaks_does_find_one(self, landmark: str, country: str) -> None:
        assert gives_away(landmark, country, NAMES[country]["aliases"])

    def test_no_landmark_names_any_country_as_a_word(self) -> None:
        every = {plain(alias) for row in NAMES.values() for alias in row["aliases"].split("|")}
        assert [row["landmark"] for row in LANDMARKS if every & set(words(row["landmark"]))] == []

    def test_no_alias_of_one_country_is_a_correct_reply_for_another(self) -> None:
        aliases = {country: row["aliases"].split("|") for country, row in NAMES.items()}
        aliases["United Kingdom"] += ["England", "Scotland", "Wales"]
        clashes = [
            (reply, country)
            for country, answers in aliases.items()
            for other, replies in aliases.items()
            if other != country
            for reply in replies
            if is_correct(reply, answers)
        ]
        assert clashes == []


class TestTheTask:
    def test_raw_texts_in_each_form_of_the_sender(self) -> None:
        sentence, entity, primed = (countries(sender_form=form).items[0] for form in ("sentence", "entity", "primed"))
        assert sentence.sender == "Alice is at the Colosseum."
        assert entity.sender == "the Colosseum"
        assert primed.sender == "Alice is at the Colosseum. Alice is in the country of"
        for item in (sentence, entity, primed):
            assert item.receiver == "Alice is in the country of"
            assert item.skyline == "Alice is at the Colosseum. Alice is in the country of"
            assert item.choice == " Italy"

    def test_chat_texts_in_each_form_of_the_sender(self) -> None:
        question = "Which country is Alice in? Answer with the name of the country only."
        sentence, entity, primed = (
            countries(template="chat", sender_form=form).items[0] for form in ("sentence", "entity", "primed")
        )
        assert sentence.sender == "Alice is at the Colosseum."
        assert entity.sender == "the Colosseum"
        assert primed.sender == f"Alice is at the Colosseum. {question}"
        for item in (sentence, entity, primed):
            assert item.receiver == question
            assert item.skyline == f"Alice is at the Colosseum. {question}"
            assert item.choice == "Italy"  # a reply to a chat turn starts without a space

    def test_the_receiver_reads_the_same_whatever_the_landmark(self) -> None:
        for template in ("raw", "chat"):
            assert len({item.receiver for item in countries(template=template).items}) == 1

    def test_ids_and_texts_are_unique_and_ids_are_plain(self) -> None:
        task = countries()
        assert len({item.id for item in task.items}) == len({item.sender for item in task.items}) == len(LANDMARKS)
        assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", item.id) for item in task.items)

    def test_fame_chooses_the_items_and_nothing_else(self) -> None:
        everything = countries().items
        famous, obscure = countries(fame="famous"), countries(fame="obscure")
        assert set(famous.items) | set(obscure.items) == set(everything)
        assert not set(famous.items) & set(obscure.items)
        assert {item.tags["fame"] for item in famous.items} == {"famous"}
        assert famous.candidates == obscure.candidates == countries().candidates

    def test_parts_are_accepted_where_the_landmark_lies_and_nowhere_else(self) -> None:
        answers = {item.tags["landmark"]: item.answers for item in countries().items}
        assert is_correct("England.", answers["Big Ben"])
        assert is_correct("the United Kingdom", answers["Big Ben"])
        assert is_correct("Scotland", answers["Loch Ness"])
        assert not is_correct("England", answers["Loch Ness"])
        assert not is_correct("Scotland", answers["Big Ben"])
        assert not is_correct("England", answers["the Eiffel Tower"])

    def test_names_go_round_by_landmark_and_stay_with_it(self) -> None:
        task = countries(names=("Bob", "Mary"), sender_form="sentence")
        assert [item.sender.split()[0] for item in task.items[:3]] == ["Bob", "Mary", "Bob"]
        assert all(item.sender.split()[0] in item.receiver for item in task.items)
        persons = {item.id: item.receiver for item in task.items}
        assert all(persons[item.id] == item.receiver for item in countries(fame="obscure", names=("Bob", "Mary")).items)

    def test_both_sides_of_a_split_share_no_landmark_and_have_fames_share(self) -> None:
        tune, test = countries().split(seed=0)
        sides = [{item.tags["landmark"] for item in side.items} for side in (tune, test)]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == {row["landmark"] for row in LANDMARKS}
        famous = [sum(item.tags["fame"] == "famous" for item in side.items) for side in (tune, test)]
        assert abs(famous[0] - famous[1]) <= 1

    def test_the_settings_record_every_option(self) -> None:
        task = countries(template="chat", sender_form="entity", fame="obscure", names=("Bob",))
        assert dict(task.settings) == {
            "template": "chat", "sender_form": "entity", "fame": "obscure", "names": ("Bob",),
        }  # fmt: skip

    def test_bad_options_are_refused(self) -> None:
        for names in ((), ("Alice", " ")):
            with pytest.raises(ValueError, match="names"):
                countries(names=names)
        with pytest.raises(TypeCheckError):
            countries(sender_form="prime")  # type: ignore[arg-type]
        with pytest.raises(TypeCheckError):
            countries(template="Chat")  # type: ignore[arg-type]
        with pytest.raises(TypeCheckError):
            countries(fame="well known")  # type: ignore[arg-type]
