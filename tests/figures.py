"""Reading figures as their JSON says they are: traces, axes, panels, and colours as every reader sees them."""

import itertools
import json
import re

import numpy as np
import plotly.graph_objects as go


def parsed(figure: go.Figure) -> dict:
    """The figure as a browser gets it."""
    return json.loads(figure.to_json())


def traces(figure: go.Figure, kind: str, mode: str | None = None) -> list[dict]:
    found = [trace for trace in parsed(figure)["data"] if trace["type"] == kind]
    return [trace for trace in found if mode is None or trace.get("mode") == mode]


def named(figure: go.Figure, name: str) -> list[dict]:
    return [trace for trace in parsed(figure)["data"] if trace.get("name") == name]


def axes_of(figure: go.Figure) -> dict[str, dict]:
    return {name: axis for name, axis in parsed(figure)["layout"].items() if re.fullmatch(r"[xy]axis\d*", name)}


def untitled(figure: go.Figure) -> list[str]:
    """Name each axis that shows labels and does not say what they are."""
    return [
        name
        for name, axis in axes_of(figure).items()
        if axis.get("showticklabels", True) and not axis.get("title", {}).get("text")
    ]


def titled_below(figure: go.Figure, name: str) -> bool:
    """Whether the lowest panel of an axis's column says what the axis shows."""
    axes = axes_of(figure)
    column = [other for other in axes if other[0] == name[0] == "x" and axes[other]["domain"] == axes[name]["domain"]]
    lowest = min(column, key=lambda other: axes["y" + other[1:]]["domain"][0], default=name)
    return bool(axes[lowest].get("title", {}).get("text"))


def overlaps(figure: go.Figure) -> list[tuple]:
    """Pairs of panels that cover one another, and panels that leave the sheet."""
    axes = axes_of(figure)
    boxes = [(axes[f"xaxis{i}"]["domain"], axes[f"yaxis{i}"]["domain"]) for i in ("", *range(2, len(axes) // 2 + 1))]
    out = [(box, None) for box in boxes if not all(0 <= end <= 1 for side in box for end in side)]
    for one, other in itertools.combinations(boxes, 2):
        if not any(a[1] < b[0] or b[1] < a[0] for a, b in zip(one, other, strict=True)):
            out.append((one, other))
    return out


def heads(figure: go.Figure) -> list[str]:
    """What is written above the panels, without its marks of style."""
    return [re.sub(r"<(?!br)[^>]*>", "", note["text"]) for note in parsed(figure)["layout"].get("annotations", [])]


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.1; 4.5 is what text of this size needs."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of linear sRGB under D65, as CIE 15 defines it."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    bent = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * bent[1] - 16, 500 * (bent[0] - bent[1]), 200 * (bent[1] - bent[2])])


SIGHT = {  # Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def nearest(colours: list[str], sight: str) -> float:
    seen = [lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
