"""Keep the results of finished comparisons, and write the tables of docs/accuracy.md from what is kept.

Run as: python benchmarks/accuracy/collect.py runs/accuracy     # a folder for each comparison, as `h2tune compare --out` makes it
        python benchmarks/accuracy/collect.py                   # only the page, from benchmarks/results/accuracy/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from h2tune.report.comparison import text_of
from h2tune.report.words import size

ROOT = Path(__file__).parents[2]
KEPT, PAGE = ROOT / "benchmarks" / "results" / "accuracy", ROOT / "docs" / "accuracy.md"
HEAD = """# Accuracy

Generated from `benchmarks/results/accuracy/*.json` by `python benchmarks/accuracy/collect.py`; do not edit by hand. Each setting is a file in
`benchmarks/accuracy/` whose head has the command. Differences are paired by seed, intervals are Student's t, 95 %; where local training answers under
5 % of a client's test exactly right, the quantity is nats per answer token (differences are positive where the method is better). Rates of every
method were tuned with the same multiples by validation, on a seed that no row uses. What the figures mean, and what was tried before
them, is in [experiments](experiments.md).
"""


def kept_form(result: dict[str, Any], name: str) -> dict[str, Any]:
    for client in result["config"]["clients"]:
        # Where data lie on a machine is nobody's business, and not part of the result.
        for key in ("train", "test", "validation", "practice", "model"):
            if client.get(key):
                client[key] = client[key].rsplit("/shared/", 1)[-1].rsplit("/benchmarks/", 1)[-1]
    result["config"]["anchors"] = str(result["config"]["anchors"]).rsplit("/benchmarks/", 1)[-1]
    seeds = max((len(row["seeds"]) for table in result["tables"] for row in table["methods"]), default=0)
    file = "demo" if name == "demo" else f"benchmarks/accuracy/{name}.yaml"
    methods = ",".join(row["method"] for row in result["tables"][0]["methods"])
    return {"command": f"h2tune compare {file} --methods {methods} --seeds {seeds}"} | result


def page_of(results: dict[str, dict[str, Any]]) -> str:
    parts = [HEAD]
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
        for kind in ("skipped", "failed"):
            parts += [f"{kind}: {key}: {reason}" for key, reason in result[kind].items()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) > 1:
        for found in sorted(Path(sys.argv[1]).glob("*/compare.json")):
            result = kept_form(json.loads(found.read_text()), found.parent.name)
            (KEPT / f"{found.parent.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    results = {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))}
    PAGE.write_text(page_of(results), encoding="utf-8")
    print(f"{PAGE}: {', '.join(results)}")


if __name__ == "__main__":
    main()
