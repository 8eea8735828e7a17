"""What a federation will cost and send, before anything is downloaded or trained, and every mistake at once.

Models are built on the meta device: shapes without weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from h2tune import tasks
from h2tune.aggregation.private import epsilon, noise_in_words, rounds_within
from h2tune.aggregation.secure_mean import LEAST
from h2tune.caveats import about_device, about_rates, about_revision, about_sharing, about_use, any_rank
from h2tune.config import ClientConfig, Experiment, Privacy, PublicQuestions
from h2tune.core.masks import kept_rank
from h2tune.core.slots import Layout
from h2tune.declared import Settings
from h2tune.errors import H2TuneError, MethodError
from h2tune.frames.anchor_text import anchor_batch, words
from h2tune.frames.registry import kind_of
from h2tune.frames.sources import load_anchors, load_texts
from h2tune.methods.base import ModelShape
from h2tune.methods.core_bytes import summed_share
from h2tune.methods.leaving import as_lines, what_leaves
from h2tune.methods.registry import check_other_methods, method_of, resolve_method
from h2tune.participant import budget
from h2tune.participant.affordable import affordable_keep
from h2tune.participant.base_models import LoadedModel, ModelPool
from h2tune.participant.context import check_tracking
from h2tune.participant.errors import ModelAwayError
from h2tune.participant.prepare import UNKNOWN, client_base, load_data, read_part, read_rows, remarks
from h2tune.participant.row_privacy import promise_in_words
from h2tune.tasks.example import Task
from h2tune.tasks.prompts import encode_prompts
from h2tune.tasks.public import load_questions
from h2tune.tasks.sources import source_path
from h2tune.utils.seeds import derive


@dataclass
class ClientPlan:
    """Figures of one client; bytes and parameters, None where the model's shape is not known yet."""

    name: str
    model: str
    family: str = "?"
    task: str = "?"
    blocks: int | None = None
    rank: int | None = None
    base_parameters: int | None = None
    adapter_parameters: int | None = None
    training_memory: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    lora_bytes: int | None = None
    setup_bytes_up: int | None = None
    setup_bytes_down: int | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Plan:
    """A federation's figures, and what is wrong with its config."""

    clients: list[ClientPlan]
    problems: list[str]
    warnings: list[str]
    depth: int | None = None
    privacy: list[str] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return {"depth": self.depth, "clients": [c.plain() for c in self.clients], "problems": self.problems,
                "warnings": self.warnings, "privacy": self.privacy, "leaves": self.leaves}  # fmt: skip


def make_plan(experiment: Experiment) -> Plan:
    """Check an experiment and work out its figures."""
    plan = Plan([], [], [])
    settings = _attempt(plan, lambda: resolve_method(experiment.method)[1])
    with _warned(plan):
        checked = settings and _attempt(plan, lambda: method_of(experiment))
    if checked and experiment.privacy:
        plan.privacy = _promise(experiment, experiment.privacy)
    if settings and experiment.secure_aggregation and not plan.problems:
        plan.privacy = [SECRET]
    plan.leaves = as_lines(what_leaves(experiment)) if settings else []
    plan.warnings += filter(None, [about_device(experiment)])
    _attempt(plan, lambda: check_other_methods(experiment))
    _attempt(plan, lambda: check_tracking(experiment))
    anchors = _attempt(plan, lambda: load_anchors(experiment.anchors, experiment.anchor_words)) or []
    models = ModelPool("meta", offline=True)
    known = [_attempt(plan, partial(tasks.build_task, c.task), f"{c.name}: ") for c in experiment.clients]
    shapes = [_shape(plan, c, task, models) for c, task in zip(experiment.clients, known, strict=True)]
    depths = [s.layout.top(experiment.blocks).depth for s in shapes if s is not None]
    plan.depth = experiment.depth or (max(depths) if depths else None)
    company = _company(plan, experiment, settings, shapes, anchors) if settings and plan.depth else {}
    for client, task, shape in zip(experiment.clients, known, shapes, strict=True):
        row = ClientPlan(client.name, client.model, task=task.name if task else "?")
        inner = settings.inner if settings else None
        _check_client(plan, inner, client, task)
        rows = _check_data(plan, experiment, client, task, shape)
        if client.row_privacy and settings:
            _promise_rows(plan, experiment, client, task, rows)
        if shape is not None and settings is not None:
            _check_anchors(plan, inner, client, shape, anchors)
        if shape is not None and plan.depth:
            _figures(plan, experiment, settings, client, shape, row, company)
        plan.clients.append(row)
    if settings and not settings.inner.has_core:
        plan.depth = None
    elif settings and (unshared := about_sharing(experiment, known)):
        plan.warnings.append(unshared)
    if settings:
        _attempt(plan, lambda: _check_bases(experiment, shapes))
        _check_use(plan, experiment, settings, shapes)
    if settings and experiment.secure_aggregation and len(company) == len(experiment.clients) and not plan.problems:
        plan.privacy.append(_summed(experiment, settings, list(company.values())))
    if plan.privacy and (asked := experiment.privacy):
        plan.privacy += _noise(plan, experiment, asked)
    return plan


SECRET = (
    "secure aggregation: the server learns the sum of the cores and no single one, as long as it keeps to the protocol;"
    " entries that fewer than three clients of a round cover stay with them;"
    " the server still sees the number of examples, losses and figures of each client"
)


def _summed(experiment: Experiment, settings: Any, shapes: list[ModelShape]) -> str:
    """What share of the core has enough company, if all clients take part in a round."""
    share = summed_share(experiment, settings, shapes)
    rest = "" if share == 1 else ", the rest stays with the clients that have it"
    return f"{share:.0%} of the core's entries are covered by {LEAST} clients and summed{rest}"


def _promise(experiment: Experiment, privacy: Privacy) -> list[str]:
    """What differential privacy will have spent, and what it does and does not say."""
    rounds, budget = experiment.rounds, privacy.epsilon
    within = rounds if budget is None else rounds_within(privacy.noise, privacy.delta, budget, rounds)
    after = epsilon([privacy.noise] * within, privacy.delta)
    short = "" if within == rounds else f"; the budget of {budget:g} ends the run after {within} of {rounds}"
    return [
        f"epsilon {after:.2f} at delta {privacy.delta:g} after {within} rounds{short}",
        "promised: who sees all cores that the server sends learns little of whether any one client took part",
        "not promised: anything against the server itself; the figures that clients report; a client's own adapter",
    ]


def _noise(plan: Plan, experiment: Experiment, asked: Privacy) -> list[str]:
    """What the noise does to the largest core that a client gets."""
    largest = max((row.bytes_down or 0 for row in plan.clients), default=0)
    entries = largest // (4 if experiment.wire.download == "float32" else 2)
    return [noise_in_words(asked.noise, asked.clip, experiment.clients_per_round, entries)] if entries else []


def _attempt(plan: Plan, action: Callable[[], Any], prefix: str = "") -> Any:
    try:
        return action()
    except (ValueError, OSError) as error:
        plan.problems += [line for line in (prefix + line for line in _lines(error)) if line not in plan.problems]
        return None


@contextmanager
def _warned(plan: Plan, prefix: str = "") -> Iterator[None]:
    """What is warned of inside is a warning of the plan, each once."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    plan.warnings += [prefix + text for text in dict.fromkeys(str(w.message) for w in said)]


def _lines(error: Exception) -> list[str]:
    """What an error says: all mistakes of ours, the beginning of what a library has to say."""
    lines = str(error).splitlines()
    return lines if isinstance(error, H2TuneError) else lines[:4]


def _check_data(
    plan: Plan, experiment: Experiment, client: ClientConfig, task: Task | None, shape: LoadedModel | None
) -> int | None:
    """Read and encode what the run will read and encode, or as much of it as is known here; returns the training rows."""
    where, seed = f"{client.name}: ", derive(experiment.seed, client.name, "data")
    sources = {part: source for part in ("train", "test", "validation") if (source := getattr(client, part))}
    if task is None:
        for part, source in sources.items():
            if source != UNKNOWN and not source.startswith(("demo:", "hub:")) and not source_path(source)[0].exists():
                plan.problems.append(f"{where}{part}: no file or folder {source}")
        return None
    data, noted = None, list[str]()
    with _warned(plan, where):
        if UNKNOWN in sources.values():
            for part, source in sources.items():
                if source != UNKNOWN:
                    _attempt(plan, partial(read_part, client, task, part, seed=seed), f"{where}{part}: ")
        elif shape is None:
            if rows := _attempt(plan, lambda: read_rows(client, task, seed=seed), where):
                noted = remarks(task, rows[0], rows[2], rows[3])
        else:
            kept = experiment.evaluation.n_validation
            data = _attempt(plan, lambda: load_data(client, task, shape, seed=seed, n_validation=kept), where)
    noted = remarks(task, data.train.examples, data.test.examples, data.leaked) if data else noted
    plan.warnings += [f"{where}{text}" for text in noted]
    return len(data.train) if data else None


def _promise_rows(
    plan: Plan, experiment: Experiment, client: ClientConfig, task: Task | None, rows: int | None
) -> None:
    """What a client's row privacy will spend, if the number of its rows is known here."""
    kind, asked = resolve_method(experiment.method)[0], client.row_privacy
    if not kind.client.protects_rows:
        plan.problems.append(f"{client.name}: row_privacy: {kind.name} uses rows in other ways than local training")
    elif asked and rows and task:
        head = task.kind == "classify"
        words = promise_in_words(asked, experiment.training, rows, experiment.rounds, head)
        again = f"; each baseline ({', '.join(names)}) spends as much" if (names := experiment.baselines) else ""
        plan.privacy.append(f"{client.name}: {words}{again}")
    else:
        plan.privacy.append(f"{client.name}: row privacy: what it spends is said at the client, before it connects")


def _check_anchors(plan: Plan, settings: Any, client: ClientConfig, shape: LoadedModel, anchors: list[str]) -> None:
    """Models that are described on the anchors have to read each of them whole."""
    frames = getattr(settings, "frames", None)
    if not anchors or not hasattr(settings, "directions") or (frames and not kind_of(frames).reads_anchors):
        return
    most = getattr(settings, "sentences", None)
    read = anchors[:: -(-len(anchors) // most)] if most else anchors
    _attempt(plan, lambda: anchor_batch(read, shape.tokenizer, shape.context, shape.causal), f"{client.name}: ")


def _check_bases(experiment: Experiment, shapes: Sequence[LoadedModel | None]) -> None:
    """Raise MethodError where the method cannot run on these models, if all are known; equal shapes are taken for equal models."""
    method = resolve_method(experiment.method)[0]
    introductions = {
        client.name: {"fingerprint": _base_of(base), "rank": experiment.rank}
        for client, base in zip(experiment.clients, shapes, strict=True)
        if base is not None
    }
    if len(introductions) < len(shapes):
        return
    try:
        method.server.suits(experiment, introductions)
    except MethodError as error:
        raise MethodError(f"{method.name}: {error}") from None


def _check_use(plan: Plan, experiment: Experiment, settings: Settings, shapes: Sequence[LoadedModel | None]) -> None:
    """Whether the method has clients enough, which keys it does not read, and what it can use of public questions."""
    method = resolve_method(experiment.method)[0]
    if len(experiment.clients) < (fewest := method.server.fewest(settings)):
        plan.problems.append(
            f"method {method.name} needs {fewest} clients or more; clients here: {len(experiment.clients)}"
        )
    plan.warnings += [*filter(None, [about_use(experiment)]), *about_rates(experiment)]
    if settings.asks_public and experiment.public and not plan.problems:
        _check_public(plan, experiment.clients, shapes, experiment.public)


def _check_public(
    plan: Plan, clients: Sequence[ClientConfig], shapes: Sequence[LoadedModel | None], public: PublicQuestions
) -> None:
    """Questions that fill a model's context: in the run it leaves them out."""
    with warnings.catch_warnings(action="ignore"):  # the method's own check has said what there is to say
        questions = load_questions(public)
    new = questions.task.max_new_tokens
    for client, shape in zip(clients, shapes, strict=True):
        if shape is None:
            continue
        prompts = encode_prompts(questions.examples, shape.tokenizer)
        if over := sum(len(ids) > shape.context - new for ids in prompts):
            plan.warnings.append(
                f"{client.name}: {over} of {len(prompts)} public questions leave no room for an answer of {new} tokens in"
                f" the {shape.context} that {client.model} reads; it leaves them out"
            )


def _check_client(plan: Plan, settings: Any, client: ClientConfig, task: Task | None) -> None:
    where = f"{client.name}: "
    if task and UNKNOWN not in (client.model, client.train) and (kind := getattr(settings, "frames", None)):
        _attempt(plan, lambda: kind_of(kind).client.suits(settings, client, task))
    if client.practice and settings is not None and getattr(settings, "frames", "") == "words":
        _attempt(plan, lambda: load_texts(client.practice or ""), where)
    if unpinned := about_revision(client):
        plan.warnings.append(f"{where}{unpinned}")
    if client.budget and not client.budget.model_dump(exclude_none=True):
        plan.warnings.append(f"{where}its budget limits nothing: it trains and sends the whole core")
    if client.budget and client.budget.step_ms:
        plan.warnings.append(f"{where}budget.step_ms is measured when the run starts; the figures here leave it out")


def _shape(plan: Plan, client: ClientConfig, task: Task | None, models: ModelPool) -> LoadedModel | None:
    """The client's model without weights; None (and a warning) if it is not on this machine yet."""
    if client.model == UNKNOWN or task is None:
        return None
    try:
        return client_base(client, task, models)
    except ModelAwayError:
        plan.warnings.append(f"{client.name}: {client.model} is not on this machine yet, so its figures are not known")
    except (ValueError, OSError) as error:
        plan.problems += [f"{client.name}: {line}" for line in _lines(error)]
    return None


def _base_of(shape: LoadedModel) -> str:
    return f"{shape.family} {shape.maps(shape.layout)}"


def _kept(plan: Plan, experiment: Experiment, settings: Any, client: ClientConfig, shape: LoadedModel) -> float:
    """A client's share of the core, as far as it can be worked out here: a time is measured by the run."""
    if client.keep != "auto":
        return float(client.keep)
    about = (client, experiment, shape, _layout(experiment, settings, shape), settings.inner)
    return _attempt(plan, lambda: affordable_keep(*about, step_ms=lambda rank: 0.0)) or 1.0


def _rank(experiment: Experiment, settings: Any, keep: float) -> tuple[int, float]:
    """A client's own rank, and its share of the core."""
    dims = getattr(settings.inner, "mask", "") == "dims" if settings else False
    cut = dims or (settings and any_rank(resolve_method(experiment.method)[0], settings))
    return kept_rank(keep, experiment.rank) if cut else experiment.rank, keep


def _layout(experiment: Experiment, settings: Any, shape: LoadedModel) -> Layout:
    return shape.layout.only(settings.adapter_slots if settings else None).top(experiment.blocks)


def _company(
    plan: Plan, experiment: Experiment, settings: Any, shapes: Sequence[LoadedModel | None], anchors: list[str]
) -> dict[str, ModelShape]:
    """The shapes of all models that are known here, by client."""
    slots = {slot for shape in shapes if shape is not None for slot in shape.layout.slots}
    lengths = [len(words(text)) for text in anchors]
    found: dict[str, ModelShape] = {}
    for client, shape in zip(experiment.clients, shapes, strict=True):
        if shape is not None:
            layout = _layout(experiment, settings, shape)
            inputs, parts = _widths(shape, layout)
            keep = _kept(plan, experiment, settings, client, shape)
            found[client.name] = ModelShape(
                *_rank(experiment, settings, keep), shape.maps(layout, whole=True), layout.depth, list(layout.slots),
                slots, plan.depth or layout.depth, parts, inputs, lengths, client.name, shape.model.get_output_embeddings() is None,
                _base_of(shape),
            )  # fmt: skip
    return {name: replace(shape, company=found) for name, shape in found.items()}


def _figures(plan: Plan, experiment: Experiment, settings: Any, client: ClientConfig, shape: LoadedModel, row: ClientPlan,
             company: Mapping[str, ModelShape]) -> None:  # fmt: skip
    layout = _layout(experiment, settings, shape)
    maps = shape.maps(layout, whole=True)
    smallest = min(min(d_in, d_out) for d_in, d_out, _ in shape.maps(layout))
    row.family, row.blocks = shape.family, layout.depth
    row.base_parameters = sum(p.numel() for p in shape.model.parameters())
    row.rank = company[client.name].rank if client.name in company else experiment.rank
    if row.rank > smallest:
        plan.problems.append(f"{client.name}: rank {row.rank} is larger than its smallest map allows ({smallest})")
    inner = settings.inner if settings else Settings()
    trained, still = inner.adapter_numbers(maps, row.rank, experiment.rank)
    row.adapter_parameters, row.training_memory = trained, budget.adapter_bytes(trained, still)
    row.lora_bytes = 4 * sum(experiment.rank * (i + o) for i, o, _ in maps)
    if client.name in company:
        kind = resolve_method(experiment.method)[0].client
        planned = kind.planned_bytes(experiment, settings, company[client.name])
        row.bytes_up, row.bytes_down = planned.up, planned.down
        row.setup_bytes_up, row.setup_bytes_down = planned.setup_up or None, planned.setup_down or None


def _widths(shape: LoadedModel, layout: Layout) -> tuple[list[int], list[int]]:
    """Widths of one block's distinct inputs, and of each slot's output."""
    sizes = dict(zip(layout.modules, shape.maps(layout), strict=False))
    writes = []
    for ref in layout.slots.values():
        fused = layout.parts.get(ref.module)
        writes.append(fused["sizes"][ref.part] if fused else sizes[ref.module][1])
    return [sizes[layout.slots[slot].module][0] for slot in layout.inputs], writes
