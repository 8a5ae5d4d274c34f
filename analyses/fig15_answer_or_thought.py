"""Figure 15: does a graft transfer the answer, or a thought that the receiver finishes?

    python analyses/fig15_answer_or_thought.py [--smoke] [--replot] [--out DIR] [--sender NAME] [--receiver NAME]
                                               [--dtype TYPE]

Countries, `Replace`. For every read layer k the write layer j is the best by choices on the tuning items (never the
receiver's last block), and every (k, j) is judged on all test items beside the logit lens of its message, the shuffled
message, silence and the skyline. Then the same on those items alone whose lens does not name the answer at k, by either
metric: its top token is not the first token of an accepted answer, and the right choice is not the first of the
choices. What a graft gets right there, another item's message does not, and the lens cannot read, the receiver's later
blocks have made of the message. Unless it is the answer in other coordinates than those of the unembedding: so there is
a second lens, which maps the state to the sender's last block by ridge regression on the packaged corpus (a linear
translator as the tuned lens is, Belrose et al. 2023, arXiv:2303.08112, fitted by least squares and not by KL).

The lens has one token: its "free" is right where its top token begins an accepted answer. A free reply of the graft has
to give the whole answer, which takes more tokens than one, so "graft less lens" is too small for free replies rather
than too large. Intervals of shares are Wilson's over items; those of differences resample countries, since the items
of one are not independent. In a sender with itself the receiver's later blocks are the sender's own, and the graft says
that they finish the answer after another prompt; in a pair (a ridge map a cell, write layers in the steps of the read
layers) another model has to. It resumes where it was stopped.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from common import arguments, loaded, publish_pair, replot_found, unfinished
from torch import Tensor

import latentcomm as lc
from latentcomm._core.linalg import mapped
from latentcomm._core.records import Records
from latentcomm._core.stats import PairedDifference
from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation, Message, Silent, Skyline
from latentcomm.channels.base import label
from latentcomm.channels.catalogue import SENDER_ALONE
from latentcomm.experiments.accuracy import NAN, differences, share
from latentcomm.experiments.controls import SHUFFLED
from latentcomm.experiments.evaluation import MESSAGE, METRICS, send
from latentcomm.experiments.maps import fit_maps, is_mapped
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.experiments.sweep.run import LENS, best_cell, cell_table, first_token_answers, tune_sweep
from latentcomm.fusion import Replace
from latentcomm.hooks.logit_lens import LensHits, logit_lens
from latentcomm.reporting.plots.tables import spoken
from latentcomm.reporting.publish import plain
from latentcomm.reporting.style import FOOT, LINE, MUTED, SHARE_AXIS, bare, blank_sheet, styles
from latentcomm.tasks import DEFAULT_N_CHOICES, Task, countries, draw_choices

NAME = "fig15_answer_or_thought"
GRAFT, LENS_COLUMN, RIDGE_LENS = "graft", "lens", "ridge_lens"
SHOWN = {
    GRAFT: "replace",
    LENS_COLUMN: LENS,
    RIDGE_LENS: RIDGE_LENS,
    SHUFFLED: SHUFFLED,
    "silent": "silent",
    "skyline": "skyline",
    SENDER_ALONE: SENDER_ALONE,
}
"""Columns of the table, and each one's name in the figure."""
GAINS = {"over_lens": LENS_COLUMN, "over_ridge_lens": RIDGE_LENS, "content": SHUFFLED}
"""Columns of differences, and what the graft is compared with."""
UNNAMED = "unnamed"
"""Items whose lens does not name the answer: neither its top token nor its best choice."""
Verdicts = Mapping[str, Sequence[bool]]


@dataclass(frozen=True)
class Settings:
    """All that decides the figure."""

    sender: str = "smollm2-135m-instruct"
    dtype: str = "float32"
    read_layers: tuple[int, ...] | None = None
    """Of the sender; from its last block but one back to half its depth in steps of `stride` where None."""
    write_layers: tuple[int, ...] | None = None
    """Of the receiver; from a third of its depth to its last block but one where None."""
    stride: int = 2
    n_tune: int = 40
    n_test: int | None = None
    seed: int = 0


SETTINGS = Settings()
SMOKE = replace(SETTINGS, read_layers=(24, 26), write_layers=(25, 27), n_tune=4, n_test=8)


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> pd.DataFrame:
    """A row a read layer and metric, on the test items at the write layer that the tuning items chose."""
    task = countries()
    tune, test = task.split(seed=settings.seed)
    test = test if settings.n_test is None else test.take(settings.n_test, seed=settings.seed)
    tune = tune.take(settings.n_tune, seed=settings.seed)
    reads, writes = _layers(settings, sender, receiver)
    fit = partial(fit_maps, sender, seed=settings.seed, checkpoint=checkpoint, progress=True)
    grid = [(read, write) for read in reads for write in writes]
    maps = fit(receiver, grid) if is_mapped(sender, receiver, "ridge") else None
    last = fit(sender, [(read, sender.n_layers - 1) for read in reads])
    translators = {read: each for (read, _), each in last.items()}
    return judged(settings, sender, receiver, tune, test, maps=maps, translators=translators, checkpoint=checkpoint)


def judged(
    settings: Settings,
    sender: lc.Model,
    receiver: lc.Model,
    tune: Task,
    test: Task,
    *,
    maps: Mapping[Cell, AffineMap] | None = None,
    translators: Mapping[int, AffineMap] | None = None,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """The table of two halves of any task with choices; what chooses a cell sees the first half alone.

    `maps` bring a cell's message to the receiver, `translators` that of a read layer to the sender's last block.
    """
    reads, writes = _layers(settings, sender, receiver)
    saved: dict[str, Any] = {"checkpoint": checkpoint, "progress": True}
    options = {"read_layers": reads, "write_layers": writes, "alignment": maps, "seed": settings.seed}
    swept = tune_sweep(sender, receiver, tune, fusion=Replace(), **options, **saved)
    cells = cell_table(swept, sender, tune)
    chosen = [best_cell(cells.loc[cells["read_layer"] == read], n_layers=receiver.n_layers) for read in reads]
    tuned = cells.set_index(["read_layer", "write_layer"])["choices_accuracy"]

    run = partial(lc.evaluate, receiver=receiver, task=test, seed=settings.seed, **saved)
    silent, skyline = run(Silent(), sender), run(Skyline(), sender)
    same = sender is receiver
    alone = skyline if same else lc.evaluate(Skyline(), sender, sender, test, seed=settings.seed, **saved)
    messages = _messages(settings, sender, test, chosen, checkpoint)
    states = {cell[0]: message.vectors for cell, message in messages.items() if message.vectors is not None}
    lens = _lens(settings, sender, receiver, test, states)
    lenses = {LENS_COLUMN: lens}
    if translators is not None:
        translated = {read: mapped(translators[read], sent) for read, sent in states.items()}
        lenses[RIDGE_LENS] = _lens(settings, sender, receiver, test, translated)
    rows = []
    for at, (cell, message) in enumerate(messages.items()):
        trials = run(_channel(cell, None if maps is None else maps[cell]), message, controls=(SHUFFLED,))
        groups = {GRAFT: [t for t in trials if t.condition == MESSAGE]}
        groups |= {SHUFFLED: [t for t in trials if t.condition == SHUFFLED]}
        groups |= {"silent": silent, "skyline": skyline, SENDER_ALONE: alone}
        named = (lens.top_token | lens.choice)[:, at].tolist()
        for metric, hits in zip(METRICS, ("top_token", "choice"), strict=True):
            right = {name: [bool(getattr(trial, metric)) for trial in group] for name, group in groups.items()}
            right |= {name: getattr(each, hits)[:, at].tolist() for name, each in lenses.items()}
            row = {"read_layer": cell[0], "write_layer": cell[1], "metric": metric, "tune_choices": tuned[cell]}
            rows.append(row | _row(right, named, [(item.id, label(item)) for item in test.items], settings.seed))
    return pd.DataFrame(rows)


def _layers(settings: Settings, sender: lc.Model, receiver: lc.Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The read and the write layers; in a pair, whose cells need a map each, the write layers too in steps."""
    reads = tuple(range(sender.n_layers - 2, sender.n_layers // 2 - 1, -settings.stride))[::-1]
    step = 1 if sender is receiver else settings.stride
    writes = tuple(range(receiver.n_layers - 2, receiver.n_layers // 3 - 1, -step))[::-1]
    return settings.read_layers or reads, settings.write_layers or writes


def _channel(cell: Cell, alignment: Any = None) -> Activation:
    return Activation("replace", lc.Site(cell[0]), lc.Site(cell[1]), Replace(), alignment)


def _messages(
    settings: Settings, sender: lc.Model, test: Task, chosen: Sequence[Cell], checkpoint: Path | None
) -> dict[Cell, Message]:
    """What the sender sends at each cell for the test items: the states that the lens unembeds, too."""
    records = Records.of(checkpoint, "sent", 1, sender.fingerprint, str(sender.dtype), test, settings.seed)
    return {
        cell: records.saved(
            f"message-{cell[0]:03d}",
            partial(send, _channel(cell), sender, test, seed=settings.seed),
            Message.load,
        )
        for cell in chosen
    }


def _lens(
    settings: Settings, sender: lc.Model, receiver: lc.Model, test: Task, states: Mapping[int, Tensor]
) -> LensHits:
    """Whether each message, unembedded by the sender, names the answer already, a column a read layer."""
    return logit_lens(
        sender,
        torch.stack(list(states.values()), 1),
        answers=first_token_answers(test, sender.first_token),
        right=[item.choice for item in test.items],
        choices=draw_choices(test, receiver.first_token, seed=settings.seed),
    )


def _row(right: Verdicts, named: Sequence[bool], items: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    """Shares with their intervals, of all items and of those that the lens does not name, and paired differences."""
    row: dict[str, Any] = {"n": len(named), "n_unnamed": len(named) - sum(named)}
    kept = [at for at, is_named in enumerate(named) if not is_named]
    for prefix, places in (("", range(len(named))), (f"{UNNAMED}_", kept)):
        part = {name: [verdicts[at] for at in places] for name, verdicts in right.items()}
        for name in (name for name in SHOWN if name in part and name != (LENS_COLUMN if prefix else "")):
            row |= {f"{prefix}{name}{end}": value for end, value in _ends("accuracy", share(part[name]))}
        compared = {name: each for name, each in GAINS.items() if f"{prefix}{each}" in row}
        ids = [items[at][0] for at in places]
        pairs = [(part[GRAFT], part[other]) for other in compared.values()]
        none = [PairedDifference(NAN, NAN, NAN, 0, "group")] * len(pairs)
        gains = differences(pairs, ids, units=dict(items), seed=seed) if ids else none
        for name, gain in zip(compared, gains, strict=True):
            row |= {f"{prefix}{name}{end}": value for end, value in _ends("difference", asdict(gain))}
    return row


def _ends(middle: str, found: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The endings of the columns of an estimate and its interval."""
    return [("", found[middle]), ("_low", found["low"]), ("_high", found["high"])]


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """Accuracy against the read layer: a column a metric, all items above, those that the lens does not name below."""
    rows: list[dict[str, Any]] = [dict(row) for row in table.to_dict("records")]
    is_pair = settings["receiver"] != settings["sender"]
    to = f"to {settings['receiver']}" if is_pair else "with itself"
    shown = {column: name for column, name in SHOWN.items() if is_pair or column != SENDER_ALONE}
    cells = list(dict.fromkeys((row["read_layer"], row["write_layer"]) for row in rows))
    width, height, gap, between = max(330, 30 * len(cells)), 220, 24, 30 + LINE
    across, down = 2 * width + gap, 2 * height + between
    sheet = blank_sheet(
        f"The answer or a thought? {settings['sender']} {to}, Countries",
        f"Replace at each read layer k and, below it, the write layer j that {settings['n_tune']} tuning items chose; "
        f"{rows[0]['n']} test items, 95 % Wilson intervals. Below: the items whose logit lens at k does not name the "
        "answer, neither by its top token nor by choices; their number is on top. Dotted: guessing among the choices.",
        [spoken(name) for name in shown.values()],
        across=across,
        down=down,
        left=66,
        right=16,
        head=8 + LINE,
        foot=FOOT + LINE,
    )
    ticks = {"tickvals": list(range(len(cells))), "ticktext": [f"{read}<br>{write}" for read, write in cells]}
    depth = {"range": [-0.5, len(cells) - 0.5], **ticks, "title": {"text": "read layer <i>k</i>, write layer <i>j</i>"}}
    share_axis = SHARE_AXIS | {"title": {"text": "accuracy"}}
    for line, (prefix, head) in enumerate((("", "all items"), (f"{UNNAMED}_", "items that the lens does not name"))):
        for column, metric in enumerate(METRICS):
            axes = sheet.panel(
                2 * line + column,
                (column * (width + gap), (1 - line) * (height + between), width, height),
                depth if line else bare(depth),
                bare(share_axis) if column else share_axis,
                f"{metric}: {head}",
            )
            here = [row for row in rows if row["metric"] == metric]
            if metric == "choices":
                flat = {"x": [-0.5, len(cells) - 0.5], "y": [1 / DEFAULT_N_CHOICES] * 2, "mode": "lines"}
                dotted = {"color": MUTED, "dash": "dot", "width": 1.5}
                sheet.figure.add_trace(go.Scatter(flat | axes, line=dotted, showlegend=False, hoverinfo="skip"))
            for rank, (name, label_of) in enumerate(shown.items()):
                if f"{prefix}{name}" in table:
                    shift = 0.06 * (rank - (len(shown) - 1) / 2)
                    curve = _curve(here, f"{prefix}{name}", label_of, shift)
                    sheet.figure.add_trace(curve.update(axes).update(showlegend=not line and not column))
            for at, row in enumerate(here if line else []):
                spot = {"x": at, "y": 1.03, "yanchor": "top", "xref": axes["xaxis"], "yref": axes["yaxis"]}
                sheet.figure.add_annotation(spot, text=str(row["n_unnamed"]), showarrow=False, font={"color": MUTED})
    return sheet.figure


def _curve(rows: Sequence[Mapping[str, Any]], column: str, name: str, shift: float) -> go.Scatter:
    """A condition's line over the cells with its intervals."""
    style, heavy = styles([name])[name], name in (SHOWN[GRAFT], LENS)
    middle, low, high = ([row[f"{column}{end}"] for row in rows] for end in ("", "_low", "_high"))
    interval = {"type": "data", "symmetric": False, "thickness": 1.3, "width": 0, "color": style.colour}
    interval |= {"array": [b - a for a, b in zip(middle, high, strict=True)]}
    interval |= {"arrayminus": [a - b for a, b in zip(middle, low, strict=True)]}
    return go.Scatter(
        x=[at + shift for at in range(len(rows))],
        y=middle,
        error_y=interval,
        mode="lines+markers",
        line={"color": style.colour, "width": 2.5 if heavy else 1.2},
        marker={"color": style.colour, "symbol": style.symbol, "size": 8},
        name=spoken(name),
        legendgroup=name,
        hovertemplate="%{y:.3f}",
    )


FIGURES = {NAME: plot, f"{NAME}_pair": plot}
"""The sender with itself, and with a receiver that was named."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    receiver = "another model to send to, instead of the sender itself"
    parser = arguments(__doc__, smoke="a few layers and items", sender=SETTINGS.sender, receiver=receiver)
    parser.add_argument("--dtype", default=SETTINGS.dtype, help="of both models: float32, bfloat16 or float16")
    options = parser.parse_args()
    if options.replot:
        replot_found(FIGURES, options.out)
        return
    settings = replace(SMOKE if options.smoke else SETTINGS, sender=options.sender, dtype=options.dtype)
    began, to, (alone, pair) = time.monotonic(), options.receiver or options.sender, FIGURES
    name = alone if to == options.sender else pair
    models = loaded(options.sender, to, settings.dtype)
    with unfinished(name, options) as checkpoint:
        table = compute(settings, **models, checkpoint=checkpoint)
        known = plain(asdict(settings) | {"receiver": to})
        publish_pair(FIGURES[name], table, name=name, folder=options.out, settings=known, began=began, **models)


if __name__ == "__main__":
    main()
