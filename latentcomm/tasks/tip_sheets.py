"""Tip sheets: the sender reads a market note on three companies, the receiver must invest in the one worth it."""

import random
from dataclasses import dataclass
from typing import Literal

from latentcomm.tasks.base import Item, Task, Template

SenderForm = Literal["sentence", "primed"]
Outlook = Literal["positive", "neutral", "negative"]


@dataclass(frozen=True)
class Topic:
    """One statement about a company in three versions of equal length and numbers, so that only the news differs."""

    positive: str
    neutral: str
    negative: str


def tip_sheets(
    *,
    n: int = 70,
    seed: int = 0,
    template: Template = "raw",
    sender_form: SenderForm = "sentence",
    senders: int = 1,
) -> Task:
    """Generated market notes on three invented companies each, of which exactly one is worth the money.

    A note names each company once and makes three statements about it. Count +1 for good news, 0 for dull and -1 for
    bad: the answer's total is 2 or 3, every other company's is 0 or less. The receiver reads "You must invest in
    exactly one of these companies: A, B or C. The best company to invest in is" (as a chat turn: "... Which company is
    the best to invest in? Answer with the name of the company only."). The sender reads the note, and if "primed" then
    the receiver's text; the skyline model reads both.

    The answer's rank in the alphabet, its position in the note and its position in the receiver's list run through all
    27 combinations in every 27 items, in random order, so no rule that ignores the news does better than one in three.
    The companies of an item begin with three different letters. Item i is the same for every n: more items only add.
    Tags: answer, outlooks (of the three companies in the note's order). Each item has its own three candidates.

    With `senders=3` each of three senders reads of one company only, in the note's order, and with `senders=2` the
    first reads of two; the texts of the second and third are `Item.more_senders`. No single sender then knows the
    answer for sure, all of them together do. What receiver and skyline read stays as it is.

    Definition of the task: Ramesh and Li 2025, arXiv:2501.14082; companies and sentences are this package's own.

    Raises:
        ValueError: n below 1, or senders that are not 1, 2 or 3.

    >>> task = tip_sheets(n=3, seed=1)
    >>> task.items[0].choice in task.items[0].candidates, len(task.items[0].candidates)
    (True, 3)
    """
    if n < 1:
        raise ValueError(f"n is {n}; request at least one tip sheet")
    if senders not in (1, 2, 3):
        raise ValueError(f"senders is {senders}; a note on three companies has 1, 2 or 3 of them")
    items = tuple(_item(seed, index, template, sender_form, senders) for index in range(n))
    return Task(
        name="tip_sheets",
        items=items,
        candidates=tuple(_choice(company, template) for company in COMPANIES),
        template=template,
        settings={"n": n, "seed": seed, "template": template, "sender_form": sender_form}
        | ({"senders": senders} if senders > 1 else {}),  # the settings of one sender stay those of published figures
    )


def _item(seed: int, index: int, template: Template, sender_form: SenderForm, senders: int) -> Item:
    rng = random.Random(f"tip_sheets:{seed}:{index}")
    rank, position_in_note, position_in_list = _balanced_positions(seed, index)
    companies = _companies(rng)
    answer = companies[rank]
    others = [company for company in companies if company != answer]
    in_note = _with_at(position_in_note, answer, rng.sample(others, 2))
    in_list = _with_at(position_in_list, answer, rng.sample(others, 2))
    outlooks: list[Outlook] = [_other_outlook(rng) if company != answer else "positive" for company in in_note]

    topics = rng.sample(TOPICS, 3 * len(in_note))
    paragraphs = [
        _paragraph(company, outlook, topics[3 * position : 3 * position + 3], rng)
        for position, (company, outlook) in enumerate(zip(in_note, outlooks, strict=True))
    ]
    n_first = len(paragraphs) - senders + 1
    notes = [" ".join(paragraphs[:n_first]), *paragraphs[n_first:]]
    ending = {
        "raw": "The best company to invest in is",
        "chat": "Which company is the best to invest in? Answer with the name of the company only.",
    }[template]
    receiver = (
        f"You must invest in exactly one of these companies: {in_list[0]}, {in_list[1]} or {in_list[2]}. {ending}"
    )
    sender_texts = [{"sentence": note, "primed": f"{note} {receiver}"}[sender_form] for note in notes]
    return Item(
        id=f"tip-sheet-{seed}-{index}",
        sender=sender_texts[0],
        receiver=receiver,
        skyline=f"{' '.join(paragraphs)} {receiver}",
        answers=(answer, answer.split()[0]),
        choice=_choice(answer, template),
        tags={"answer": answer, "outlooks": " ".join(outlooks)},
        candidates=tuple(_choice(company, template) for company in in_list),
        more_senders=tuple(sender_texts[1:]),
    )


def _balanced_positions(seed: int, index: int) -> tuple[int, int, int]:
    """Alphabetical rank, position in the note, position in the list: each of the 27 once in every block of 27 items."""
    block, within = divmod(index, 27)
    cell = random.Random(f"tip_sheets:{seed}:block {block}").sample(range(27), 27)[within]
    return cell // 9, cell // 3 % 3, cell % 3


def _companies(rng: random.Random) -> list[str]:
    """Three companies in the alphabet's order; three different first letters make their first tokens differ."""
    letters = sorted(rng.sample(sorted({company[0] for company in COMPANIES}), 3))
    return [rng.choice([company for company in COMPANIES if company[0] == letter]) for letter in letters]


def _with_at(position: int, answer: str, others: list[str]) -> tuple[str, ...]:
    return (*others[:position], answer, *others[position:])


def _other_outlook(rng: random.Random) -> Outlook:
    return "neutral" if rng.random() < 0.5 else "negative"


def _paragraph(company: str, outlook: Outlook, topics: list[Topic], rng: random.Random) -> str:
    news = list(rng.choice(NEWS[outlook]))
    rng.shuffle(news)
    versions = [_version(topic, kind).format(n=rng.randint(4, 19)) for topic, kind in zip(topics, news, strict=True)]
    return f"{company} {versions[0]}. The company {versions[1]}. It {versions[2]}."


def _version(topic: Topic, kind: Outlook) -> str:
    return {"positive": topic.positive, "neutral": topic.neutral, "negative": topic.negative}[kind]


def _choice(company: str, template: Template) -> str:
    return f" {company}" if template == "raw" else company


NEWS: dict[Outlook, tuple[tuple[Outlook, Outlook, Outlook], ...]] = {
    "positive": (("positive", "positive", "positive"), ("positive", "positive", "neutral")),
    "neutral": (("neutral", "neutral", "neutral"), ("positive", "neutral", "negative")),
    "negative": (("negative", "negative", "negative"), ("negative", "negative", "neutral")),
}
"""The three news items that make an outlook, in any order; a neutral company may have good and bad news at once."""

TOPICS = (
    Topic(
        "raised its profit forecast for the year by {n} percent",
        "kept its profit forecast for the year at {n} million",
        "cut its profit forecast for the year by {n} percent",
    ),
    Topic(
        "won a {n}-year contract from a large new customer",
        "renewed a {n}-year contract on the same old terms",
        "lost a {n}-year contract with its largest old customer",
    ),
    Topic(
        "reported record sales, up {n} percent on last year",
        "reported steady sales, much like the last {n} years",
        "reported falling sales, down {n} percent on last year",
    ),
    Topic(
        "paid off the last {n} million of its debt early",
        "refinanced the last {n} million of its debt as planned",
        "missed a payment on {n} million of its overdue debt",
    ),
    Topic(
        "opened {n} new stores, all of them already profitable",
        "has {n} old stores, none of them changed lately",
        "closed {n} stores, all of them deep in losses",
    ),
    Topic(
        "launched a product that sold out within {n} days",
        "launched a product that needed {n} days of paperwork",
        "recalled a product that broke down within {n} days",
    ),
    Topic(
        "saw the regulator approve its most promising new design",
        "told the regulator about a routine change of address",
        "saw the regulator ban its most promising new design",
    ),
    Topic(
        "won the patent lawsuit that had threatened its future",
        "moved the patent files that lay in its archive",
        "lost the patent lawsuit that had threatened its future",
    ),
    Topic(
        "widened its profit margin to a record {n} percent",
        "held its profit margin at the usual {n} percent",
        "sells nearly every order {n} percent below its cost",
    ),
    Topic(
        "attracted three famous investors who doubled their stakes",
        "hosted three famous investors who toured its offices",
        "upset three famous investors who sold their stakes",
    ),
    Topic(
        "cut its production costs by {n} percent without layoffs",
        "kept its production costs unchanged for {n} months running",
        "let its production costs climb by {n} percent unchecked",
    ),
    Topic(
        "was named the best managed firm in its field",
        "was listed among the older firms in its field",
        "was called the worst managed firm in its field",
    ),
    Topic(
        "has orders that fill its factories for {n} years",
        "has factories that are {n} years old on average",
        "has factories that stood idle for {n} whole months",
    ),
    Topic(
        "doubled its cash reserves within the last {n} months",
        "kept its cash reserves unchanged for another {n} months",
        "burned nearly all its cash reserves within {n} months",
    ),
    Topic(
        "gained market share from all of its rivals",
        "kept the market share that it had before",
        "lost market share to all of its rivals",
    ),
    Topic(
        "hired the most admired engineers in the industry",
        "hired the usual number of trainees this summer",
        "lost its most admired engineers to a rival",
    ),
    Topic(
        "raised its dividend after {n} strong quarters in succession",
        "kept its dividend after {n} quiet quarters in succession",
        "scrapped its dividend after {n} weak quarters in succession",
    ),
    Topic(
        "has customers who praise it and keep returning",
        "has customers in the same towns as before",
        "has customers who complain and demand their money",
    ),
    Topic(
        "signed a partnership that opens {n} rich foreign markets",
        "discussed a partnership in {n} meetings without any decision",
        "broke a partnership that supplied {n} rich foreign markets",
    ),
    Topic(
        "passed every audit with high praise for its accounts",
        "changed the firm that prints copies of its accounts",
        "faces a criminal inquiry over fraud in its accounts",
    ),
    Topic(
        "built a new plant ahead of time and budget",
        "painted an old plant in its usual two colours",
        "left a new plant unfinished and far over budget",
    ),
    Topic(
        "expects demand to triple over the next {n} months",
        "expects demand to stay level for {n} more months",
        "expects demand to collapse over the next {n} months",
    ),
    Topic(
        "saw its shares upgraded to strong buy by analysts",
        "saw its shares rated as average by most analysts",
        "saw its shares downgraded to strong sell by analysts",
    ),
    Topic(
        "secured very cheap supplies for the coming {n} years",
        "bought its ordinary supplies from the same {n} sellers",
        "faces a ruinous shortage for the coming {n} years",
    ),
    Topic(
        "fixed the fault that had long worried its buyers",
        "answered the letters that had reached it last month",
        "hid the fault that is now endangering its buyers",
    ),
    Topic(
        "holds a technology that none of its competitors match",
        "holds a technology that most of its competitors use",
        "holds a technology that none of its customers want",
    ),
    Topic(
        "returned to profit with {n} million in yearly earnings",
        "broke exactly even with {n} million in yearly turnover",
        "slid into loss with {n} million in unpaid bills",
    ),
    Topic(
        "is growing faster than any firm it competes with",
        "is growing neither faster nor slower than its field",
        "is shrinking faster than any firm it competes with",
    ),
)

COMPANIES = (
    "Aldermoor Foods", "Arvenix Labs", "Astreval Mining",
    "Brellan Paints", "Bexholm Energy", "Bravonic Motors",
    "Corvane Shipping", "Caldreth Steel", "Cintara Media",
    "Dastrel Paper", "Dunmarrow Farms", "Delvora Textiles",
    "Embervale Power", "Elstrom Optics", "Eskadine Pharma",
    "Fenwold Timber", "Farrowex Logistics", "Florinth Cosmetics",
    "Galdera Airlines", "Grennock Tools", "Gelvane Plastics",
    "Harrowmere Insurance", "Helvast Robotics", "Hintoria Games",
    "Ironfell Castings", "Istavar Software", "Inglemar Fisheries",
    "Jaspen Furniture", "Jorvane Batteries", "Juniveld Toys",
    "Kestrix Drones", "Kaldorf Brewing", "Kinnavar Books",
    "Lorrimund Glass", "Lastrel Rail", "Luminash Lighting",
    "Marrowick Dairy", "Mendavar Chemicals", "Morvello Shoes",
    "Northelm Homes", "Narvelle Watches", "Nimbrook Water",
    "Oakhallow Builders", "Orvessa Travel", "Olstrand Ceramics",
    "Pellavane Print", "Portmarsh Seafood", "Prandex Security",
    "Quillmere Press", "Quorrin Data", "Questrall Tyres",
    "Rosthaven Hotels", "Ravellon Fabrics", "Rindlow Bicycles",
    "Sundrel Solar", "Stavrick Cement", "Selmarsh Salt",
    "Tavistrom Telecom", "Torvale Turbines", "Tindrake Tea",
    "Valdrossa Wines", "Vexley Valves", "Vintorel Vision",
    "Wexmoor Wool", "Wolstane Bridges", "Windarrel Sails",
    "Yarrowfen Honey", "Yeldane Yachts", "Yostrin Yarns",
    "Zephrane Gliders", "Zorvik Zinc", "Zellander Clocks",
)  # fmt: skip
"""Invented; 24 first letters, three companies each, no two with the same first word."""
