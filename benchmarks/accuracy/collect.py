"""Keep the results of finished comparisons and ablations, and write docs/accuracy.md and docs/ablations.md from what is kept.

Run as: python benchmarks/accuracy/collect.py runs/accuracy     # a folder for each comparison, as `h2tune compare --out` makes it
        python benchmarks/accuracy/collect.py                   # only the page, from benchmarks/results/accuracy/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from picture import picture

from h2tune.comparison.statistics import interval
from h2tune.report.comparison_text import text_of
from h2tune.report.format import size

ROOT = Path(__file__).parents[2]
KEPT, PAGE = ROOT / "benchmarks" / "results" / "accuracy", ROOT / "docs" / "accuracy.md"
PICTURE = ROOT / "docs" / "accuracy.svg"
ABLATIONS, ABLATED = ROOT / "benchmarks" / "results" / "ablations.json", ROOT / "docs" / "ablations.md"
HEAD = """# Accuracy

Generated from `benchmarks/results/accuracy/*.json` by `python benchmarks/accuracy/collect.py`; do not edit by hand.

How to read the tables:

- Each setting is a file in `benchmarks/accuracy/`; its head has the command.
- Figures are per cent of the test answered exactly right. Where local training answers under 5 % of a client's test right, they are [nats](glossary.md#nats) for each answer token.
  Differences are positive where the method is better, also for nats.
- Differences are paired by seed. Intervals are Student's t, 95 %. Bold differences have an interval on one side of 0.
- The rates of every method were tuned with the same multiples, by validation, on a seed that no row uses. `demo-all` is the exception: it ran at the file's own rates.
- `h2tune-unshared` is h2tune without averaging.

What the figures mean, and what was tried before them, is in [experiments](experiments.md).
"""

ABLATED_HEAD = """# Ablations

Generated from `benchmarks/results/ablations.json` by `python benchmarks/accuracy/collect.py`; do not edit by hand.

Each table is one federation, a file in `benchmarks/accuracy/`. The file says what each variant changes; everything else stays as it is. Figures are per cent of the test right, mean over the
clients. Differences are to the table's first row, paired by seed.

Rates are the file's, not tuned for each variant. One seed gives no interval, and seeds of one setting differ by .04. So read differences of a few points as noise.
"""


def kept_form(result: dict[str, Any], name: str) -> dict[str, Any]:
    for client in result["config"]["clients"]:
        # Where data lie on a machine is nobody's business, and not part of the result.
        for key in ("train", "test", "validation", "practice", "model"):
            if client.get(key):
                client[key] = (
                    client[key]
                    .rsplit("/shared/", 1)[-1]
                    .rsplit("/benchmarks/", 1)[-1]
                    .rsplit("/site-packages/", 1)[-1]
                )
    result["config"]["anchors"] = str(result["config"]["anchors"]).rsplit("/benchmarks/", 1)[-1]
    seeds = max((len(row["seeds"]) for table in result["tables"] for row in table["methods"]), default=0)
    file = "demo" if name.startswith("demo") else f"benchmarks/accuracy/{result['config']['name']}.yaml"
    sizes = ",".join(str(table["n_train"]) for table in result["tables"] if table["n_train"])
    methods = ",".join(row["method"] for row in result["tables"][0]["methods"])
    return {
        "command": f"h2tune compare {file} --methods {methods}{sizes and f' --n-train {sizes}'} --seeds {seeds}"
    } | result


OWN = ("h2tune", "h2tune-unshared")
CORE = (*OWN, "local", "h2tune-published", "colora")


def gain(table: dict[str, Any], rival: str) -> str:
    """What h2tune has over a rival, paired by seed; bold where the interval is on one side of 0."""
    rows = {row["method"]: row["seeds"] for row in table["methods"]}
    if rival not in rows:
        return "-"
    sign = -1 if table["quantity"] == "nats" else 1
    common = [seed for seed in rows["h2tune"] if seed in rows[rival]]
    found = interval([sign * (rows["h2tune"][s] - rows[rival][s]) for s in common])
    told = text_of(found, table["quantity"], signed=True)
    return f"**{told}**" if len(common) > 1 and (found[1] > 0 or found[2] < 0) else told


def summary(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| setting | seeds | local | h2tune | over local | over the same frames, not averaged | over the best rival |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for table in result["tables"]:
            rows = {row["method"]: row for row in table["methods"]}
            rivals = [row for method, row in rows.items() if method not in OWN]
            best = (min if table["quantity"] == "nats" else max)(rivals, key=lambda row: row["mean"][0])["method"]
            shown = [text_of(rows[m]["mean"][:1] * 3, table["quantity"]) for m in ("local", "h2tune")]
            size, unit = (
                f", {table['n_train']} rows" if table["n_train"] else "",
                ", nats" if table["quantity"] == "nats" else "",
            )
            cells = [f"[{name}](#{name}){size}{unit}", str(len(rows["h2tune"]["seeds"])), *shown, gain(table, "local"),
                     gain(table, "h2tune-unshared"), f"{gain(table, best)} {best}"]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_all(results: dict[str, dict[str, Any]]) -> str:
    """The mean of the core methods over all settings that have five seeds or more of each and exact answers."""
    sums: dict[str, list[float]] = {method: [] for method in CORE}
    used = []
    for name, result in results.items():
        table = result["tables"][0]
        rows = {row["method"]: row for row in table["methods"]}
        whole = all(method in rows and len(rows[method]["seeds"]) >= 5 for method in CORE)
        if whole and table["quantity"] == "metric":
            used.append(name)
            for method, found in sums.items():
                found.append(rows[method]["mean"][0])
    told = ", ".join(f"{m} {100 * sum(v) / len(v):.1f}" for m, v in sums.items())
    return f"Mean over {', '.join(used)}: {told}."


def reasons(result: dict[str, Any]) -> list[str]:
    """Why some methods have no row; those with the same reason in one line."""
    found: dict[str, list[str]] = {}
    for kind in ("skipped", "failed"):
        for key, reason in result[kind].items():
            found.setdefault(f"{kind}: {reason.removeprefix(key + ': ')}", []).append(key)
    return [f"{', '.join(keys)}: {reason}." for reason, keys in found.items()]


def page_of(results: dict[str, dict[str, Any]]) -> str:
    parts = [HEAD, summary(results), over_all(results)]
    for name, result in results.items():
        parts.append(f"## {name}\n\n`{result['command']}`")
        for table in result["tables"]:
            quantity = table["quantity"]
            unit = "nats per answer token" if quantity == "nats" else "per cent right"
            heads = [
                "method",
                *result["clients"],
                f"mean ({unit})",
                "over local",
                "over the best other",
                "up / round",
                "rates",
            ]
            if table["n_train"]:
                parts.append(f"**{table['n_train']} training rows for each client:**")
            lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
            for row in table["methods"]:
                clients = [
                    text_of(row["clients"][n][:1] * 3, quantity) if n in row["clients"] else "-"
                    for n in result["clients"]
                ]
                best = text_of(row.get("over_best_other"), quantity, signed=True) + f" {row.get('best_other', '')}"
                cells = [row["method"], *clients, text_of(row["mean"], quantity), text_of(row.get("over_local"), quantity, signed=True),
                         best, size(row["bytes_up"]), f"x{row['rate']:g}"]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
            parts.append("\n".join(lines))
        parts += reasons(result)
    return "\n\n".join(parts) + "\n"


def ablated_form(result: dict[str, Any]) -> dict[str, Any]:
    rows = {}
    for name, seeds in result["results"].items():
        scores = {
            seed: {n: f["metric"] for n, f in found.items() if n != "seconds" and f} for seed, found in seeds.items()
        }
        rows[name] = {"changes": result["plan"][name], "seeds": scores}
    return {"command": result["command"], "base": result["base"], "variants": rows}


def ablated_page(results: dict[str, dict[str, Any]]) -> str:
    parts = [ABLATED_HEAD]
    for name, result in results.items():
        means = {
            v: {s: sum(c.values()) / len(c) for s, c in row["seeds"].items()} for v, row in result["variants"].items()
        }
        first = next(iter(means.values()))
        lines = ["| variant | mean | by seed | difference |", "|---|---|---|---|"]
        for variant, seeds in means.items():
            common = [seed for seed in seeds if seed in first]
            gap = sum(seeds[s] - first[s] for s in common) / max(1, len(common))
            by_seed = " ".join(f"{100 * v:.1f}" for v in seeds.values())
            lines.append(
                f"| {variant} | {100 * sum(seeds.values()) / len(seeds):.1f} | {by_seed} | {100 * gap:+.1f} |"
            )
        parts.append(f"## {name}\n\n`{result['command']}` (base: `{result['base']}`)\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def collect_ablations(folder: Path | None) -> None:
    kept = json.loads(ABLATIONS.read_text()) if ABLATIONS.is_file() else {}
    for found in sorted(folder.glob("*/variants.json")) if folder else []:
        result = json.loads(found.read_text())
        if result["read"] == "test":
            kept[found.parent.name] = ablated_form(result)
    if kept:
        ABLATIONS.write_text(json.dumps(kept, indent=1) + "\n")
        ABLATED.write_text(ablated_page(kept), encoding="utf-8")


def main() -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) > 1:
        for found in sorted(Path(sys.argv[1]).glob("*/compare.json")):
            result = kept_form(json.loads(found.read_text()), found.parent.name)
            (KEPT / f"{found.parent.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    collect_ablations(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))}
    PAGE.write_text(page_of(results), encoding="utf-8")
    PICTURE.write_text(picture(results), encoding="utf-8")
    print(f"{PAGE}: {', '.join(results)}")


if __name__ == "__main__":
    main()
