"""The tables of the pages of results, from the committed CSVs: what a page shows is held to what was measured.

python tests/results_tables.py prints them.
"""

import json
import math
from pathlib import Path

import pandas as pd

FIGURES = Path(__file__).resolve().parent.parent / "figures"
MERGING = "fig9_redundancy_merging"
CROSS = {"SmolLM2 to Qwen": "fig10_cross_family", "Qwen to SmolLM2": "fig10_cross_family_back"}
THOUGHT = "1.5b/fig15_answer_or_thought"
AUDITED = tuple(
    path.relative_to(FIGURES).as_posix().removesuffix("_audit.csv")
    for path in sorted(FIGURES.glob("*/compare_*_audit.csv"))
)
"""The comparisons under audit, of larger models."""
Rows = dict[tuple[str, str, str], dict[str, float]]


def merging_table(task: str) -> list[str]:
    """Figure 9, one task: a line a channel. The last p-value is of the choices, against the shuffled message."""
    table = pd.read_csv(FIGURES / f"{MERGING}.csv")
    rows = by_name(table[table["task"] == task])
    head = ["fusion", "k, j", "scale", "tuning", "free", "choices", "shuffled", "random"]
    lines = [[*head, "free, over replace", "p", "choices, over replace", "p", "p shuffled"]]
    for name in channels(rows):
        free, choices = rows[name, "message", "free"], rows[name, "message", "choices"]
        lines.append(
            [
                name.replace("_", " "),
                cell(choices),
                number(choices["scale"], "{:g}") if name.endswith("residual") else "",
                number(choices["tune_accuracy"], "{:.3f}"),
                share(free),
                share(choices),
                both(rows, name, "shuffled"),
                both(rows, name, "random"),
                over(free, "replace"),
                p_value(free["p_replace"]),
                over(choices, "replace"),
                p_value(choices["p_replace"]),
                p_value(choices["p_shuffled"]),
            ]
        )
    return markdown(lines)


def cross_table(direction: str) -> list[str]:
    """Figure 10, one direction: a line a channel. Differences and p-values are of the choices."""
    rows = by_name(pd.read_csv(FIGURES / f"{CROSS[direction]}.csv"))
    head = ["channel", "k, j", "tuning", "free", "choices", "shuffled", "zero", "random", "over unaligned", "p"]
    lines = [[*head, "p silent", "p shuffled", "p random pairs"]]
    for name in channels(rows):
        free, choices = rows[name, "message", "free"], rows[name, "message", "choices"]
        lines.append(
            [
                name,
                cell(choices),
                number(choices["tune_accuracy"], "{:.3f}"),
                share(free),
                share(choices),
                *(both(rows, name, control) for control in ("shuffled", "zero", "random")),
                over(choices, "unaligned"),
                p_value(choices["p_unaligned"]),
                p_value(choices["p_silent"]),
                p_value(choices["p_shuffled"]),
                p_value(choices["p_ridge_of_random_pairs"]),
            ]
        )
    return markdown(lines)


def channels_table(task: str) -> list[str]:
    """Figure 8, one task: a line a channel; p-values are of the choices."""
    table = pd.read_csv(FIGURES / f"fig8_channels_{task}.csv")
    rows = by_name(table)
    lines = [
        [
            "channel",
            "free",
            "choices",
            "shuffled",
            "p silent",
            "p text",
            "p shuffled",
            "unparsed",
            "GFLOP",
            "message",
            "s",
        ]
    ]
    for name in channels(rows):
        free, choices = rows[name, "message", "free"], rows[name, "message", "choices"]
        weight = choices["message_bytes"]
        lines.append(
            [
                name.replace("_", " ") + ("*" if choices["on_front"] else ""),
                share(free),
                share(choices),
                both(rows, name, "shuffled"),
                *(p_value(choices[f"p_{other}"]) for other in ("silent", "text", "shuffled")),
                f"{free['unparsed']:.2f}",
                f"{choices['flops'] / 1e9:.1f}",
                "" if not weight else f"{weight:.0f} B" if weight < 1000 else f"{weight / 1000:.1f} kB",
                f"{choices['seconds']:.2f}",
            ]
        )
    return markdown(lines)


def part_of(row: dict[str, float], name: str) -> str:
    """Accuracy and number of some of the items."""
    return f"{row[f'{name}_accuracy']:.2f} of {row[f'{name}_n']:.0f}" if row[f"{name}_n"] else ""


def cascade_rows(task: str) -> list[str]:
    """Figure 11, one task: a line a hand-off and stop; p-values are of the cascade against others on the same items."""
    table = pd.read_csv(FIGURES / f"fig11_cascade_{task}.csv", dtype={"stop": str})
    rows = {(row["hand_off"], row["stop"], row["condition"]): row for row in table.to_dict("records")}
    large = rows["none", "all", "large"]
    of_states = [each for each in ("zero", "random") if each in set(table["condition"])]
    head = ["hand-off", "n or stop", "tokens", "accuracy", "small continued", "shuffled", *of_states]
    lines = [[*head, "p shuffled", "answer not in opening", "self", "vote", "cost", "p silent", "p large"]]
    for name, stop, condition in [("none", "0", "silent"), ("none", "all", "large"), *rows]:
        row, is_alone = rows[name, stop, condition], name == "none"
        if (condition == "message" and (stop != "0")) or len(lines) < 3:
            empty = [rows.get((name, stop, each)) for each in of_states]
            whole = [rows.get((name, stop, each)) for each in ("self", "self-consistency")]
            is_tested = stop != "oracle" and not is_alone
            lines.append(
                [
                    condition if is_alone else name,
                    "" if is_alone else stop,
                    f"{row['tokens']:.1f}",
                    share(row),
                    "" if is_alone else part_of(row, "handed"),
                    f"{row['handed_shuffled']:.2f}" if is_tested else "",
                    *("" if each is None else f"{each['handed_accuracy']:.2f}" for each in empty),
                    p_value(row["p_handed"]) if is_tested else "",
                    "" if is_alone else part_of(row, "without"),
                    *("" if each is None else f"{each['accuracy']:.2f}" for each in whole),
                    f"{row['flops'] / large['flops']:.2f}",
                    *("" if stop == "oracle" else p_value(row[f"p_{each}"]) for each in ("silent", "large")),
                ]
            )
    return markdown(lines)


PICTURES = ("digits", "flags", "emoji")


def pictures_table(data: str) -> list[str]:
    """Figure 12, one set: accuracy by choices, a line a channel, a column a question; in brackets another picture's."""
    found, rows = _of_pictures(data)
    lines = [["channel", *(f"{part}: {question} (n = {row['n']:.0f})" for part, question, row in found)]]
    for name in rows["channel"].drop_duplicates():
        line = [name.replace("_", " ")]
        for part, question, _ in found:
            own = _picture_row(rows, part, question, name, "message")
            other = _picture_row(rows, part, question, name, "shuffled")
            line.append(share(own) + ("" if other is None else f" ({other['accuracy']:.2f})"))
        lines.append(line)
    return markdown(lines)


def pictures_tests(data: str) -> list[str]:
    """Figure 12, one set: of the latents the exact McNemar p-values against what stands beside them."""
    found, rows = _of_pictures(data)
    captions = ("caption", "caption_by_map", "caption_by_word")
    beside = ("silent", "shuffled", *captions, "random_encoder", "wrong_names", "probe")
    lines = [["question", "channel", *(f"p {each.replace('_', ' ')}" for each in beside), "zero", "random"]]
    for part, question, row in found:
        for name in ("soft_prompt", "soft_prompt_trained", "graft"):
            own = _picture_row(rows, part, question, name, "message")
            empty = [_picture_row(rows, part, question, name, each) for each in ("zero", "random")]
            lines.append(
                [
                    f"{part}: {question} ({row['type']})",
                    name.replace("_", " "),
                    *(p_value(own[f"p_{each}"]) for each in beside),
                    *(f"{each['accuracy']:.2f}" for each in empty),
                ]
            )
    return markdown(lines)


def replies_table(data: str) -> list[str]:
    """Figure 12, one set: accuracy of free replies, a line a channel; questions that the skyline replies to in 10 %."""
    found, rows = _of_pictures(data, "free")
    told = [_picture_row(rows, part, question, "skyline", "message") for part, question, _ in found]
    shown = [each for each, best in zip(found, told, strict=True) if best is not None and best["accuracy"] >= 0.1]
    lines = [["channel", *(f"{part}: {question}" for part, question, _ in shown)]]
    for name in rows["channel"].drop_duplicates():
        own = [_picture_row(rows, part, question, name, "message") for part, question, _ in shown]
        lines.append([name.replace("_", " "), *(share(each) for each in own if each is not None)])
    return markdown(lines)


def likeness_table() -> list[str]:
    """Figure 13, all sets: the chosen cell of each measure, on the half where it was chosen and on the other."""
    lines = [["set", "measure", "block, layer", "chosen on", "held out", "null, mean", "null, 95 %", "p"]]
    for data in PICTURES:
        if not (FIGURES / f"fig13_block_layer_map_{data}.csv").exists():
            continue
        table = pd.read_csv(FIGURES / f"fig13_block_layer_map_{data}.csv")
        for place, row in enumerate(table[table["chosen"]].to_dict("records")):
            numbers = [f"{row[each]:.3f}" for each in ("choosing", "held_out", "null_mean", "null_95", "p")]
            shown = f"{data} ({row['names']:.0f} names)" if not place else ""
            lines.append([shown, row["measure"], f"{row['block']:.0f}, {row['layer']:.0f}", *numbers])
    return markdown(lines)


def pairs_table(data: str) -> list[str]:
    """Figure 14, one set: accuracy by choices, a line a question and channel, a column a number of names."""
    table = pd.read_csv(FIGURES / f"fig14_training_pairs_{data}.csv")
    rows = table[(table["metric"] == "choices") & (table["condition"] == "message")]
    sizes = sorted(rows["names"].unique())
    lines = [["question", "channel", *map(str, sizes)]]
    for key, group in rows.groupby(["part", "question", "channel"], sort=False):
        by = group.set_index("names")["accuracy"]
        if key[2] != "silent":
            found = [f"{by[size]:.2f}" if size in by.index else "" for size in sizes]
            lines.append([f"{key[0]}: {key[1]}", key[2].replace("_", " "), *found])
    return markdown(lines)


def thought_table(metric: str) -> list[str]:
    """Figure 15 of the 1.5B model, one metric: a line a read layer, then the items that the lens does not name."""
    table = pd.read_csv(FIGURES / f"{THOUGHT}.csv")
    head = ["k, j", "graft", "lens", "graft less lens", "graft less shuffled", "n, unnamed", "graft", "shuffled"]
    lines = [[*head, "skyline"]]
    for row in table[table["metric"] == metric].to_dict("records"):
        gains = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*_triple(row, name)) for name in ("over_lens", "content")]
        whole = ["{:.2f} [{:.2f}, {:.2f}]".format(*_triple(row, name)) for name in ("graft", "lens")]
        among = ["{:.2f} [{:.2f}, {:.2f}]".format(*_triple(row, f"unnamed_{name}")) for name in ("graft", "shuffled")]
        lines.append([cell(row), *whole, *gains, str(row["n_unnamed"]), *among, f"{row['unnamed_skyline']:.2f}"])
    return markdown(lines)


def audit_table(name: str) -> list[str]:
    """A comparison under audit: a line a channel, the audit by choices, and how often a wrong message is followed."""
    rows, audit = by_name(pd.read_csv(FIGURES / f"{name}.csv")), pd.read_csv(FIGURES / f"{name}_audit.csv")
    effects = {(row["channel"], row["metric"]): row for row in audit.to_dict("records")}
    lines = [["channel", "free", "choices", "content", "presence", "over self", "over filler", "follows, free"]]
    for channel in channels(rows):
        line = [channel.replace("_", " "), *(share(rows[channel, "message", metric]) for metric in ("free", "choices"))]
        if (channel, "choices") in effects:
            row, free = effects[channel, "choices"], effects[channel, "free"]
            names = ("content", "presence", "over_self", "over_filler")
            line += ["" if math.isnan(row[each]) else gain(row, each) for each in names]
            line.append("" if math.isnan(free["follow"]) else f"{free['follow']:.2f}, chance {free['chance']:.2f}")
        lines.append(line + [""] * (len(lines[0]) - len(line)))
    return markdown(lines)


def gain(row: dict[str, float], name: str) -> str:
    """A difference with its interval."""
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*_triple(row, name))


def _triple(row: dict[str, float], name: str) -> list[float]:
    """An estimate and the ends of its interval."""
    return [row[f"{name}{end}"] for end in ("", "_low", "_high")]


def _of_pictures(data: str, metric: str = "choices") -> tuple[list[tuple[str, str, dict[str, float]]], pd.DataFrame]:
    """Parts and questions in their order, each with a first row, and all rows of a metric."""
    table = pd.read_csv(FIGURES / f"fig12_crossmodal_{data}.csv")
    rows = table[table["metric"] == metric]
    firsts = rows.drop_duplicates(["part", "question"]).to_dict("records")
    return [(row["part"], row["question"], row) for row in firsts], rows


def _picture_row(rows: pd.DataFrame, *key: str) -> dict[str, float] | None:
    """The row of a part, question, channel and condition, if there is one."""
    named = rows.set_index(["part", "question", "channel", "condition"])
    return named.loc[key].to_dict() if key in named.index else None


LEARNED = Path(__file__).resolve().parent.parent / "benchmarks" / "learned_channels.json"


def asked_table(found: dict[str, dict[str, float]], first: str) -> list[str]:
    """Outcomes of a part of the learned channels' benchmark; p-values against the first."""
    lines = [["", "right", "share", f"p, {first}"]]
    for name, row in found.items():
        shown = f"{row['right'] / row['n']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        lines.append([name, f"{row['right']} of {row['n']}", shown, p_value(row.get("p", math.nan))])
    return markdown(lines)


def trials_table(found: list[dict[str, float | str]]) -> list[str]:
    """Rows of `summarise` in that benchmark: a line a channel and condition."""
    lines = [["channel", "message", "n", "free", "choices"]]
    for row in found:
        if row["metric"] == "free":
            key = (row["channel"], row["condition"])
            other = next(
                each for each in found if (each["channel"], each["condition"]) == key and each["metric"] != "free"
            )
            shares = [f"{each['accuracy']:.2f} [{each['low']:.2f}, {each['high']:.2f}]" for each in (row, other)]
            lines.append([str(key[0]), "true" if key[1] == "message" else str(key[1]), str(row["n"]), *shares])
    return markdown(lines)


def learned_tables() -> dict[str, list[str]]:
    """All tables of the page on channels that learn, by what they are of."""
    found = json.loads(LEARNED.read_text("utf-8"))
    out = {
        f"coconut, {seed}": asked_table(each["asked"], "thoughts")
        for seed, each in found["coconut"].items()
        if "seed" in seed
    }
    out |= {f"calm, {kind}": asked_table(each, "composed") for kind, each in found["calm"]["asked"].items()}
    return out | {part: trials_table(found[part]["table"]) for part in ("interlat", "linear")}


FAULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "faults.json"


def faults_table() -> list[str]:
    """A line a fault, a column a command: the pieces that were lost, or that the fault was not survived."""
    found = json.loads(FAULTS.read_text("utf-8"))["faults"]
    cells = {
        (row["fault"], row["command"]): (
            "**not survived**"
            if not row["survived"]
            else "survived"
            if row["lost"] is None
            else f"{row['lost']} of {row['pieces']}"
        )
        for row in found
    }
    faults, commands = ([*dict.fromkeys(row[key] for row in found)] for key in ("fault", "command"))
    return markdown(
        [["fault", *commands], *([fault, *(cells.get((fault, each), "") for each in commands)] for fault in faults)]
    )


def refusals_table() -> list[str]:
    """A line a wrong command line: what is wrong, the line, and the sentence that refuses it."""
    found = json.loads(FAULTS.read_text("utf-8"))["wrong"]
    lines = [["wrong", "command line", "answer"]]
    for row in found:
        says = row["says"].removeprefix("latentcomm: ").replace("|", "\\|").replace("<", "&lt;")
        lines.append([row["kind"], f"`latentcomm {row['command']}`", says if row["refused"] else "**not refused**"])
    return markdown(lines)


def by_name(table: pd.DataFrame) -> Rows:
    """The rows by channel, condition and metric."""
    return {(row["channel"], row["condition"], row["metric"]): row for row in table.to_dict("records")}


def channels(rows: Rows) -> list[str]:
    """The channels in the order of the table."""
    return list(dict.fromkeys(name for name, _, _ in rows))


def number(value: float, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if math.isnan(value) else form.format(value)


def cell(row: dict[str, float]) -> str:
    """The cell (k, j) of a channel that has one."""
    return f"{row['read_layer']:.0f}, {row['write_layer']:.0f}" if row["read_layer"] >= 0 else ""


def share(row: dict[str, float]) -> str:
    """A share with its interval."""
    return f"{row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def both(rows: Rows, name: str, condition: str) -> str:
    """Free and choices of a control."""
    found = [rows.get((name, condition, metric)) for metric in ("free", "choices")]
    return " / ".join(f"{row['accuracy']:.2f}" for row in found if row is not None)


def over(row: dict[str, float], other: str) -> str:
    """A paired difference with its interval."""
    ends = (row[f"over_{end}{other}"] for end in ("low_", "high_"))
    return "" if math.isnan(row[f"over_{other}"]) else "{:+.2f} [{:+.2f}, {:+.2f}]".format(row[f"over_{other}"], *ends)


def p_value(value: float) -> str:
    """A p-value as tables show it."""
    return "" if math.isnan(value) else f"{value:.2g}" if value >= 1e-4 else "< 0.0001"


def markdown(lines: list[list[str]]) -> list[str]:
    """The lines of a table."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return ["| " + " | ".join(line) + " |" for line in ruled]


if __name__ == "__main__":
    for name in AUDITED:
        print(name, *audit_table(name), "", sep="\n")
    if (FIGURES / f"{THOUGHT}.csv").exists():
        for metric in ("free", "choices"):
            print(metric, *thought_table(metric), "", sep="\n")
    for data in PICTURES:
        if (FIGURES / f"fig12_crossmodal_{data}.csv").exists():
            print(data, *pictures_table(data), "", *pictures_tests(data), "", sep="\n")
    for task in ("kv_math_worked", "gsm8k"):
        if (FIGURES / f"fig11_cascade_{task}.csv").exists():
            print(task, *cascade_rows(task), "", sep="\n")
    for task in ("countries", "tip_sheets"):
        if (FIGURES / f"fig8_channels_{task}.csv").exists():
            print(task, *channels_table(task), "", sep="\n")
    if LEARNED.exists():
        for name, lines in learned_tables().items():
            print(name, *lines, "", sep="\n")
    if FAULTS.exists():
        print("faults", *faults_table(), "", "wrong", *refusals_table(), "", sep="\n")
    for task in ("countries", "tip_sheets"):
        if (FIGURES / f"{MERGING}.csv").exists():
            print(task, *merging_table(task), "", sep="\n")
    for direction, name in CROSS.items():
        if (FIGURES / f"{name}.csv").exists():
            print(direction, *cross_table(direction), "", sep="\n")
