"""The picture of the README: every core method's mean accuracy with its interval, a panel for each setting."""

from __future__ import annotations

from html import escape
from typing import Any

PANELS = {
    "demo": "three formats, generated problems",
    "items-same": "one format, generated problems",
    "glue-same": "SST-2, whole development set",
    "glue-different": "three GLUE tasks",
}
METHODS = {
    "h2tune": "h2tune",
    "h2tune-unshared": "the same, not averaged",
    "colora": "Co-LoRA",
    "h2tune-published": "as published",
    "local": "local LoRA",
}
LEFT, PANEL, GAP, TOP, ROW = 150, 210, 20, 40, 26  # pixels
STRONG, WEAK, GREY = "#2a78d6", "#8a94a3", "#7d8590"  # readable on white and on black


def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = GREY, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}">{escape(words)}</text>'


def panel(result: dict[str, Any], title: str, left: float) -> list[str]:
    """Dots with intervals from 30 to 100 per cent."""
    rows = {row["method"]: row["mean"] for row in result["tables"][0]["methods"]}
    height = TOP + ROW * len(METHODS)

    def at(share: float) -> float:
        return left + PANEL * (100 * share - 30) / 70

    seeds = len(result["tables"][0]["methods"][0]["seeds"])
    parts = [text(left + PANEL / 2, 16, title, weight="bold"), text(left + PANEL / 2, 30, f"{seeds} seeds")]
    for tick in (40, 60, 80, 100):
        x = at(tick / 100)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height}" stroke="{GREY}" stroke-opacity=".25"/>'
        )
        parts.append(text(x, height + 14, f"{tick} %"))
    for place, method in enumerate(METHODS):
        if method not in rows:
            continue
        mean, low, high = rows[method]
        y, colour = TOP + ROW * (place + 0.5), STRONG if method == "h2tune" else WEAK
        parts.append(
            f'<line x1="{at(max(low, 0.3)):.1f}" x2="{at(high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
        side = -1 if at(high) > left + PANEL - 40 else 1
        x = at(high) + 6 if side == 1 else at(low) - 6
        parts.append(text(x, y + 4, f"{100 * mean:.1f}", "start" if side == 1 else "end", colour))
    return parts


def picture(results: dict[str, dict[str, Any]]) -> str:
    width = LEFT + len(PANELS) * (PANEL + GAP) + GAP
    height = TOP + ROW * len(METHODS) + 24
    parts = [
        text(LEFT - 14, TOP + ROW * (place + 0.5) + 4, name, "end", STRONG if method == "h2tune" else GREY)
        for place, (method, name) in enumerate(METHODS.items())
    ]
    for place, (name, title) in enumerate(PANELS.items()):
        parts += panel(results[name], title, LEFT + place * (PANEL + GAP))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" role="img">'
        "<title>Mean accuracy of three clients with three model families, with 95 % intervals over seeds</title>"
        + "".join(parts)
        + "</svg>\n"
    )
