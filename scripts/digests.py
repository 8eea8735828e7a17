"""Do all methods still compute what they did? Digests of short runs, recorded once and compared after a change.

    python scripts/digests.py           # the first time it records .digests.json, afterwards it compares
    python scripts/digests.py lada      # compares the runs with this word in their names; all must have been recorded

Two rounds of five updates of every method, and of h2tune with its options, on one thread. Sums round differently on other
processors and versions: digests only compare on one machine with one lock file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import torch
import yaml
from safetensors.torch import load_file

from h2tune import run
from h2tune.config import parse_config
from h2tune.methods.factors import FactorServer
from h2tune.methods.registry import known_methods

RECORD = Path(__file__).parent.parent / ".digests.json"
FORMATS, MODELS = ("fill", "choice", "program"), ("zoo:llama", "zoo:gpt2", "zoo:qwen")
TEACHING = ("lada", "lada-published")  # a teacher and public questions


def methods() -> tuple[list[str], list[str]]:
    """The package's own methods: those for equal models, and those for different ones."""
    own = {
        name: kind for name, kind in sorted(known_methods().items()) if kind.server.__module__.startswith("h2tune.")
    }
    equal = [name for name, kind in own.items() if issubclass(kind.server, FactorServer)]
    return equal, [name for name in own if name not in equal]


def experiment(same_model: bool, **changes: Any) -> Any:
    """Three clients on generated problems: three families, or one."""
    clients = [
        {"name": f"c{i}", "model": MODELS[0 if same_model else i], "task": f"demo-{kind}",
         "train": f"demo:{kind}?split=train&n=16&seed={i}", "test": f"demo:{kind}?split=test&n=8&seed={i}",
         "validation": f"demo:{kind}?split=validation&n=8&seed={i}"} | changes.pop(f"c{i}", {})
        for i, kind in enumerate(FORMATS)
    ]  # fmt: skip
    training = {"steps": 5, "batch_size": 4} | changes.pop("training", {})
    common = {"name": "digests", "rounds": 2, "rank": 4, "anchors": "demo", "device": "cpu", "clients": clients}
    return parse_config(common | {"training": training} | changes)


def runs() -> dict[str, Any]:
    equal, different = methods()
    found = {name: experiment(False, method=spec(name)) for name in different if name not in TEACHING}
    found |= {f"{name} (equal models)": experiment(True, method=spec(name)) for name in (*equal, "colora", "fedsb")}
    found |= {name: taught(name) for name in TEACHING}
    options: dict[str, dict[str, Any]] = {
        "alternation part": {"alternation": "part"}, "alternation joint": {"alternation": "joint"},
        "frames random": {"frames": "random"}, "frames weights": {"frames": "weights"},
        "relation nearest": {"relation": "nearest"},
        "private and validation": {"private": 4, "accept": "validation", "train_factors": False},
        "slots": {"slots": ["q", "v", "down"]}, "distill": {"distill": 0.1}, "proximal": {"proximal": 0.1, "ridge": 1.0},
        "median": {"aggregate": "median"}, "agreeing": {"aggregate": "agreeing"},
    }  # fmt: skip
    found |= {
        f"h2tune: {k}": experiment(False, method={"name": "h2tune", "frames": "anchor"} | v)
        for k, v in options.items()
    }
    half = {"c1": {"keep": 0.5}}
    found["h2tune: dims"] = experiment(False, **half)
    found["h2tune: entries"] = experiment(False, method={"name": "h2tune", "mask": "entries"}, **half)
    found["h2tune: int8, top-k"] = experiment(False, wire={"dtype": "int8", "top_k": 0.5, "download": "bfloat16"})
    found["h2tune: secure aggregation"] = experiment(False, secure_aggregation={"threshold": 2})
    found["h2tune: accumulation"] = experiment(
        False, training={"accumulation": 2, "schedule": "linear", "dropout": 0.1}
    )
    found["h2tune: late joiner"] = experiment(False, c2={"joins": 2})
    found["h2tune: baselines"] = experiment(False, baseline=["local", "h2tune-unshared"])
    words = {"name": "h2tune", "frames": "words", "private": 4, "practice_steps": 3}
    found["h2tune: words"] = experiment(False, method=words, clients=[
        {"name": f"w{i}", "model": model, "task": {"kind": "choice", "prompt": "{text}\nIs it good? ", "answer": "{label}",
         "options": ["yes", "no"]}, "train": "TRAIN", "test": "TEST"} for i, model in enumerate(MODELS)])  # fmt: skip
    practised = {f"c{i}": {"practice": f"demo:{kind}?split=practice&n=24&seed=0"} for i, kind in enumerate(FORMATS)}
    found["h2tune: glossary"] = experiment(False, method={"name": "h2tune", "frames": "glossary"}, **practised)
    return found


def taught(name: str) -> Any:
    """A teacher and two students with one task, who answer public questions."""
    tasks = {
        f"c{i}": {"task": "demo-fill"}
        | {
            part: f"demo:fill?split={part}&n={n}&seed={i}"
            for part, n in (("train", 16), ("validation", 8), ("test", 8))
        }
        for i in range(len(MODELS))
    }
    public = {"source": "demo:fill?split=anchors&n=20&seed=0", "task": "demo-fill"}
    method = {"name": name, "teacher": "c0", "slice": 8, "budget": "600B"}
    return experiment(False, method=method, public=public, **tasks)


def spec(name: str) -> Any:
    return {"name": name, "sentences": 6} if name == "fedmkt" else name


def write_texts(folder: Path) -> tuple[str, str]:
    """Training and test sentences with a label."""
    rows = [
        {"text": f"We saw {n} birds and the day was {'fine' if n % 2 else 'grey'}.", "label": "yes" if n % 2 else "no"}
        for n in range(70)
    ]
    for name, part in (("train", rows[:60]), ("test", rows[60:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return str(folder / "train.jsonl"), str(folder / "test.jsonl")


def digest(folder: Path) -> str:
    """All tensors and scores that a run ends with."""
    found = hashlib.sha256()
    files = [folder / "server" / "core.safetensors", *sorted(folder.glob("clients/*/adapter/*.safetensors"))]
    for path in files:
        for name, tensor in sorted(load_file(path).items()):
            if name == "_records":  # of a commit; they hold times
                continue
            found.update(f"{path.parent.parent.name} {name} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = {name: [c["base"], c["local"], c["final"]] for name, c in metrics["clients"].items()}
    found.update(json.dumps(scores, sort_keys=True).encode())
    return found.hexdigest()[:16]


def main() -> None:
    torch.set_num_threads(1)
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    wanted, fresh, wrong = sys.argv[1:], {}, []
    if wanted and not known:
        sys.exit(
            f"there is no record yet, and one of a few runs would be taken for that of all: run {sys.argv[0]} alone"
        )
    with tempfile.TemporaryDirectory() as folder:
        train, test = write_texts(Path(folder))
        for number, (name, config) in enumerate(runs().items()):
            if wanted and not any(w in name for w in wanted):
                continue
            plain = yaml.safe_load(
                yaml.safe_dump(config.model_dump(mode="json")).replace("TRAIN", train).replace("TEST", test)
            )
            out = Path(folder) / str(number)
            run(parse_config(plain), out)
            fresh[name] = digest(out)
            told = {None: "IS NOT IN THE RECORD", fresh[name]: "equal"}.get(known.get(name), "DIFFERS")
            print(f"{name:<32} {fresh[name]}  {told if known else ''}", flush=True)
            if known and told != "equal":
                wrong.append(name)
    if not known:
        RECORD.write_text(json.dumps(fresh, indent=1) + "\n")
    if wrong:
        sys.exit(f"{len(wrong)} of {len(fresh)} runs give other figures, or are not in the record: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
