"""A client's model as it left its run: the same base by the same functions, and the adapter that was saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from h2tune import tasks
from h2tune.config import ClientConfig, Experiment
from h2tune.deployment.kits import Kit
from h2tune.participant.base_models import LoadedModel, ModelPool
from h2tune.participant.devices import missing_device
from h2tune.participant.label_bias import LABEL_BIAS, LabelBias
from h2tune.participant.passes import PLAIN, Passes
from h2tune.participant.prepare import client_base
from h2tune.store import RunStore
from h2tune.tasks.example import Task
from h2tune.tasks.read_by import READ_BY, ReadBy, read_by_from
from h2tune.utils.files import StoreError, sound


@dataclass(frozen=True)
class Trained:
    """A client's part of the config, its task, its base, and the base with its trained adapter.

    Attributes:
        task: where a row holds several questions, it asks the one that was trained.
        passes: how the model is run, with the client's label bias where it has one.
        read_by: which columns its training rows were read by; empty in runs that older versions have ended.
    """

    client: ClientConfig
    experiment: Experiment
    task: Task
    base: LoadedModel
    model: PeftModel
    passes: Passes = PLAIN
    read_by: tuple[ReadBy, ...] = ()


def is_kit(folder: Path) -> bool:
    """Whether a folder is a client's kit (`h2tune.deployment.kits`) and not a run directory."""
    return (folder / "kit.json").is_file()


def only_client(run: Path) -> str:
    """Whose adapter a folder holds, where it can be but one.

    Raises:
        StoreError: naming the clients, if there are several.
    """
    if is_kit(run):
        return str(Kit(run, "client").about.name)
    names = [c.name for c in RunStore(run).open()[1].clients]
    if len(names) > 1:
        raise StoreError(f"{run} has several clients: choose with --client {' or --client '.join(names)}")
    return names[0]


def experiment_of(run: Path) -> Experiment:
    """The config of a run, or of a client's kit."""
    if is_kit(run):
        kit = Kit(run, "client")
        return kit.experiment(kit.own())
    return RunStore(run).open()[1]


def find_client(run: Path, name: str) -> ClientConfig:
    """The client's part of a run's (or its own kit's) config.

    Raises:
        StoreError: naming the clients there are.
    """
    clients = experiment_of(run).clients
    for client in clients:
        if client.name == name:
            return client
    raise StoreError(f"{run} has no client {name!r}; it has {', '.join(c.name for c in clients)}.")


def load_trained(run: Path, name: str, *, device: str | None = None, whole: bool = False) -> Trained:
    """Base model with the client's trained adapter.

    Args:
        device: where to; None takes the run's.
        whole: hold the base unquantised and in float32, for an export that must not lose digits.

    Raises:
        StoreError: if there is no finished adapter, it does not fit its base, or this machine lacks the run's device.
    """
    client, experiment = find_client(run, name), experiment_of(run)
    folder = run / "state" / "adapter" if is_kit(run) else run / "clients" / name / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():
        if is_kit(run.parent):
            raise StoreError(f"{run} is the server's: the adapter of {name} is in its own kit, on its own machine.")
        goes_on = "h2tune client" if is_kit(run) else f"h2tune run FILE --out {run} --resume"
        raise StoreError(f"{run} has no finished adapter for {name}: let the run end first ({goes_on}).")
    task = tasks.build_task(client.task)
    if whole and client.quantization != "none":
        client = client.model_copy(update={"quantization": "none"})
    if device is None and (missing := missing_device(experiment.device)):
        raise StoreError(f"{missing}. To use the adapter here, write device: auto in {_says_device(run)}.")
    pool = ModelPool.of(experiment, device=device, precision="fp32" if whole else None)
    base = client_base(client, task, pool)
    if task.kind == "classify":
        base.model.config.id2label = dict(enumerate(task.labels))
        base.model.config.label2id = {label: i for i, label in enumerate(task.labels)}
    held = _weights(folder)
    try:
        model = PeftModel.from_pretrained(base.model, folder).eval()
    except (KeyError, RuntimeError, ValueError) as error:
        raise StoreError(
            f"The adapter in {folder} does not fit its base model: {str(error).splitlines()[0]}"
        ) from None
    _require_whole(model, held, folder)
    known = _read_by(folder)
    task = task.trained_on([one.form for one in known])
    return Trained(client, experiment, task, base, model, _passes(folder), known)


def _says_device(run: Path) -> Path:
    return run / ("own.yaml" if is_kit(run) else "config.yaml")


def _passes(folder: Path) -> Passes:
    path = folder / LABEL_BIAS
    if not path.is_file():
        return PLAIN
    with sound(path):
        return Passes(bias=LabelBias.read(json.loads(path.read_text(encoding="utf-8"))))


def _read_by(folder: Path) -> tuple[ReadBy, ...]:
    path = folder / READ_BY
    if not path.is_file():
        return ()
    with sound(path):
        return read_by_from(json.loads(path.read_text(encoding="utf-8")))


def _weights(folder: Path) -> set[str]:
    """Names of an adapter's weights, of files that can be read."""
    with sound(path := folder / "adapter_config.json"):
        dict(json.loads(path.read_text(encoding="utf-8")))
    with sound(path := folder / "adapter_model.safetensors"), safe_open(path, "pt") as file:
        return set(file.keys())


def _require_whole(model: PeftModel, held: set[str], folder: Path) -> None:
    """Weights that the adapter's files lack would be new ones."""
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if held != wanted:
        odd = sorted(held ^ wanted)
        raise StoreError(
            f"The adapter in {folder} does not fit its base model: {len(odd)} weights differ, first {odd[0]}."
        )
