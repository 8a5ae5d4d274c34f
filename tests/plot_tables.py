"""Tables as a diagnosis writes them, with numbers planted so that no two cells of a figure are alike."""

import math

import pandas as pd

FUSIONS = ("replace", "sum")
MESSAGES = ("same text", "other text")
WRITES = (0, 3, 7)
LAST = 9
DETECTORS = ("cosine", "knn_distance", "combined")


def pairs(**more: float) -> pd.DataFrame:
    return pd.DataFrame(
        {"sender_layer": a, "receiver_layer": b, "debiased_cka": (a - b) / 10, "null_max": 0.05} | more
        for a in range(4)
        for b in range(3)
    )


def drift_table() -> pd.DataFrame:
    rows = []
    for f, fusion in enumerate(FUSIONS):
        for m, message in enumerate(MESSAGES):
            for write in WRITES:
                for item in range(5):
                    rare = (1 + f + 3 * m + write + 7 * item) % 20 / 20
                    row = {"fusion": fusion, "message": message, "write_layer": write, "item": item}
                    rows += [row | {"detector": "combined", "percentile": rare}]
                    rows += [row | {"detector": "cosine", "percentile": 1 - rare}]
    return pd.DataFrame(rows)


def healing_table() -> pd.DataFrame:
    rows = []
    for f, fusion in enumerate(FUSIONS):
        for m, message in enumerate(MESSAGES):
            for write in WRITES:
                for layer in range(LAST + 1):
                    value = math.nan if layer < write else (1 + f + m) / (2 + layer)
                    row = {"fusion": fusion, "message": message, "write_layer": write, "layer": layer}
                    for what, scale in (("deviation", 1.0), ("percentile", 0.5)):
                        row |= {f"{what}_median": scale * value}
                        row |= {f"{what}_low": 0.9 * scale * value, f"{what}_high": 1.1 * scale * value}
                    rows.append(row | {"own_percentile_median": 0.4 + layer / 100})
    return pd.DataFrame(rows)


def effects_table() -> pd.DataFrame:
    return pd.DataFrame(
        {"fusion": fusion, "message": message, "write_layer": write, "item": item, "kl": 0.1 * (1 + f + m) * (1 + item)}
        for f, fusion in enumerate(FUSIONS)
        for m, message in enumerate(MESSAGES)
        for write in WRITES
        for item in range(5)
    )


def calibration_table(families: tuple[str, ...] = ("real", "sum")) -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": layer, "family": family, "detector": detector, "one_sided": 0.5, "two_sided": (layer + f + d) / 40}
        for layer in (5, 15)
        for f, family in enumerate(families)
        for d, detector in enumerate(DETECTORS)
    )


def cells_table(detectors: tuple[str, ...] = ("cosine", "combined")) -> pd.DataFrame:
    rows = []
    for d, detector in enumerate(detectors):
        for write in range(4):
            rows.append({"detector": detector, "write_layer": write, "drift": write / 4 + d, "accuracy": write / 8})
    return pd.DataFrame(rows)


def cascade_rows(hand_offs: tuple[str, ...] = ("text", "latent")) -> pd.DataFrame:
    """As `CascadeSweep.table` gives it; every accuracy is another."""
    rows: list[dict] = []

    def row(hand_off: str, stop: str, condition: str, tokens: float, cost: float, **more: float) -> None:
        right = 3 + len(rows)
        one = {"hand_off": hand_off, "stop": stop, "condition": condition, "n": 100, "accuracy": right / 100}
        one |= {"low": right / 200, "high": (right + 100) / 200, "tokens": tokens, "fired": 1.0, "in_opening": 0.0}
        one |= {"finished": 0.1, "handed_accuracy": right / 110, "handed_n": 90}
        rows.append(one | {"flops": cost} | more)

    row("none", "0", "silent", 0.0, 1e9)
    row("none", "all", "large", 70.0, 9e9)
    for off, hand_off in enumerate(hand_offs):
        for stop, tokens in (("0", 0.0), ("8", 8.0), ("16", 15.5), ("entropy-drop", 11.0 + off), ("oracle", 6.0)):
            cost = 1e9 + 1e8 * tokens + 1e7 * off
            fired = 0.7 if stop == "entropy-drop" else 1.0
            row(hand_off, stop, "message", tokens, cost, fired=fired, in_opening=tokens / 20)
            if stop not in ("0", "oracle"):
                of_states = ("zero", "random") if hand_off == "latent" else ()
                for condition in ("shuffled", *of_states, "self", "self-consistency"):
                    row(hand_off, stop, condition, tokens, cost + 1e7)
    return pd.DataFrame(rows)


def signal_rows() -> pd.DataFrame:
    """Three tokens of two signals, and a stop that has handed a quarter, half and three quarters over by them."""
    rows = []
    for token in (1, 2, 3):
        for signal, value in (("entropy", 2 / token), ("margin", token / 4)):
            ends = {"median": value, "low": value / 2, "high": 1.5 * value}
            rows.append({"signal": signal, "token": token, "n": 9} | ends)
        share = dict.fromkeys(("median", "low", "high"), token / 4)
        rows.append({"signal": "handed over by entropy-drop", "token": token, "n": 9} | share)
    return pd.DataFrame(rows)


def loss_rows() -> pd.DataFrame:
    return pd.DataFrame(
        {"channel": channel, "update": n, "loss": math.nan if n == 0 else 4 / (n + c), "held_out_loss": 5 / (n + 1 + c)}
        for c, channel in enumerate(("gated", "calm"))
        for n in range(0, 30, 10)
    )
