"""`method: h2tune` with nothing else set against local training, on the settings of this folder: is it ever below?

    python benchmarks/accuracy/default.py --settings items-same glue-same --seeds 3 --out runs/default

Of each setting the data, models, rates and numbers of updates stay; what its file says of the method, of frames and practice
goes. A run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from h2tune.comparison.compare import compare

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, about, amend

HERE = Path(__file__).parent


def plain(name: str, out: Path, tests: int | None) -> Path:
    """The setting with the default method, as a file beside the runs."""
    made = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    made |= {"method": "h2tune", "name": f"{name}-default"}
    made.pop("methods", None)
    made.pop("depth", None)
    for client in made["clients"]:
        client.pop("practice", None)
        if tests and "demo:" not in client["test"]:
            client["n_test"] = min(tests, client.get("n_test", tests))
        for part in ("train", "validation", "test"):
            source = HERE / client.get(part, "demo:")
            if source.exists():
                client[part] = str(source.resolve())
    if made.get("anchors") != "demo":
        made["anchors"] = "builtin"
    path = out / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(made, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["items-same", "glue-same", "svamp-same", "math-different"])
    parser.add_argument("--methods", nargs="+", default=["local", "h2tune"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-rows", type=int, help="at most so many test rows of a client")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name in args.settings:
        file = plain(name, args.out, args.test_rows)
        result = compare(file, args.methods, args.seeds, args.out / name, jobs=1, say=print)
        (table,) = result["tables"]
        for row in table["methods"]:
            over = row.get("over_local")
            told = "" if over is None else "over local {:+.4f} ({:+.4f} to {:+.4f})".format(*over)
            print(f"{name}: {row['method']} {row['mean'][0]:.4f} {table['quantity']}  {told}", flush=True)
        made = {name: table | {"made": about()}}  # settings that ran at other times stay beside it
        amend(RESULTS / "default.json", lambda known, made=made: known | made)


if __name__ == "__main__":
    main()
