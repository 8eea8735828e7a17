"""A passive party: decode, act, encode. It lends embeddings and class means; rows, ids and labels stay here."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload, decode, encode
from h2tune.store import ClientStore
from h2tune.utils.files import StoreError, sound, write_atomic
from h2tune.utils.seeds import derive
from h2tune.vertical import average, local_round
from h2tune.vertical.agreed import check_settings
from h2tune.vertical.align import digests, looser, positions
from h2tune.vertical.config import ONE, VerticalConfig
from h2tune.vertical.encoder import adamw, batch_rows, corrupt, make_encoder, pack, unpack
from h2tune.vertical.exposure import Sizes, check, withhold
from h2tune.vertical.parties import PartyData
from h2tune.vertical.priors import class_shares
from h2tune.vertical.prototypes import class_means
from h2tune.vertical.psi import Responder
from h2tune.vertical.run_store import write_party

CHUNK = 65536  # rows that are embedded at a time
_BEST, _ROUND = "best.safetensors", "round"  # the best round's networks, and in the file which round that is


class Passive:
    """Answers the active party's messages.

    Args:
        store: where its private state is kept; without one a restart loses it.
    """

    def __init__(self, config: VerticalConfig, data: PartyData, salt: str, store: ClientStore | None = None) -> None:
        self.config, self.data, self.salt, self.store = config, data, salt, store
        self.name, self.round, self.sizes, self.process = data.name, 0, Sizes(), secrets.token_hex(8)
        training = config.training
        self.encoder = make_encoder(
            data.width, training.hidden, training.dim, derive(config.seed, "encoder", self.name)
        )
        self.optimiser = adamw(self.encoder.parameters(), training.learning_rate, training.weight_decay)
        self.shares: dict[str, float] = {}  # of rows kept, by round's end; for this party's own eyes
        self._x: tuple[Tensor, Tensor] | None = None  # of the batch whose gradient is owed
        self._z: Tensor | None = None
        self._best: dict[str, Tensor] | None = None
        self._best_round = 0
        self.average: dict[str, Tensor] = {}  # of the weights over rounds, with `training.average`
        self._responder: Responder | None = None

    def handle(self, data: bytes) -> bytes:
        """The answer to one message.

        Raises:
            ProtocolError: if it cannot be answered.
        """
        message = decode(data, limit=self.config.network.largest)
        if message.client != self.name:
            raise ProtocolError(f"A message for {message.client} came to {self.name}.")
        answer = self.answer(message.kind, message.round, message.payload)
        return encode(message.reply(message.kind, answer, self.name, self.process))

    def answer(self, kind: str, round: int, payload: Payload) -> Payload:
        """The answer to what a message holds; see `handle`."""
        actions = {
            "join": self._join, "align": self._align, "step": self._step, "local": self._local,
            "predict": self._predict, "rejoin": self._rejoin, "finish": self._finish,
        }  # fmt: skip
        if kind not in actions:
            raise ProtocolError(f"{kind!r} is not a kind of message.")
        self.round = round
        check(kind, "down", payload, self.sizes, self.name)
        return check(kind, "up", actions[kind](payload), self.sizes, self.name)

    # Who is here

    def _join(self, payload: Payload) -> Payload:
        """Hashed ids and hashed label names; for a looser form of ids only those.

        Raises:
            ProtocolError: if the active party's settings are others, or hashes are asked for where a private intersection was
                agreed.
        """
        check_settings(self.config, payload)
        train, test = self.data.train, self.data.test
        if form := payload.meta.get("form"):
            if self.config.align.how == "psi":
                raise ProtocolError(f"{self.name} matches ids by `psi` and sends no hashes of them")
            return Payload({"keys": torch.from_numpy(digests([looser(i, form) for i in train.ids], self.salt).copy())})
        meta = {"rows": len(train), "test_rows": len(test) if test else 0}
        names = Counter(label for label in train.labels if label is not None)
        spoken = sorted(name for name, count in names.items() if count >= self.config.exposure.min_count)
        tensors = {"labels": torch.from_numpy(digests(spoken, self.salt).copy())}
        if self.config.align.how == "psi":
            if self._responder is None:
                self._responder = Responder(train.ids, test.ids if test else [])
            return Payload(tensors | self._responder.answer(payload.tensors), meta)
        tensors["keys"] = torch.from_numpy(train.keys.copy())
        tensors["test_keys"] = torch.from_numpy((test or train).keys[: len(test) if test else 0].copy())
        return Payload(tensors, meta)

    def _align(self, payload: Payload) -> Payload:
        """Take the positions of the aligned people; names of classes come as hashes.

        Raises:
            ProtocolError: two classes have one hash, and this party names classes: it would take both for one.
        """
        t = payload.tensors
        names = any(self.data.train.labels) or isinstance(self.data.config.prior, dict)
        if names and len(t["classes"].unique(dim=0)) < len(t["classes"]):
            raise ProtocolError(f"{self.name}: two classes differ by case, spaces or forms of a character only; {ONE}")
        aligned = torch.full((int(payload.meta["rows"]),), -1)
        aligned[t["places"].long()] = positions(self.data.train.keys, t["keys"].numpy())
        tests = torch.full((int(payload.meta["test_rows"]),), -1)
        if self.data.test:
            tests[t["test_places"].long()] = positions(self.data.test.keys, t["test_keys"].numpy())
        self._set_up({"aligned": aligned, "tests": tests, "classes": t["classes"]})
        if self.store:
            (self.store.folder / _BEST).unlink(missing_ok=True)  # of a run before this one
            write_atomic(self.store.folder / "align.safetensors", save(self._alignment))
            self.store.save_state(0, pack(self._parts()))
        used = sorted(set(self.free_labels[self.free_labels >= 0].tolist()))
        return Payload({"labels": t["classes"][used].clone()})

    def _set_up(self, alignment: dict[str, Tensor]) -> None:
        self._alignment = alignment
        self.aligned, self.tests, names = alignment["aligned"], alignment["tests"], alignment["classes"]
        training = self.config.training
        self.sizes = Sizes(len(names), training.dim, min(training.batch, len(self.aligned)))
        free = torch.ones(len(self.data.train), dtype=torch.bool)
        free[self.aligned[self.aligned >= 0]] = False
        self.free_x = self.data.train.x[free]
        codes = {bytes(row.tolist()): index for index, row in enumerate(names)}
        labels = [self.data.train.labels[i] for i in torch.nonzero(free)[:, 0].tolist()]
        code_of = {
            name: codes.get(digests([name], self.salt).tobytes(), -1) for name in set(labels) if name is not None
        }
        used = [-1 if name is None or not self.config.method.labels else code_of[name] for name in labels]
        self.free_labels = self._frequent(torch.tensor(used, dtype=torch.int64))
        self.nu = torch.zeros(len(names), training.dim, requires_grad=True)
        self.nu_optimiser = adamw([self.nu], training.learning_rate, training.weight_decay)
        self.declared = self._declared(codes)

    def _frequent(self, labels: Tensor) -> Tensor:
        """Labels without those of classes of fewer than `min_count` rows: what they train and count would tell of them."""
        rare = class_shares(labels, self.sizes.classes) < self.config.exposure.min_count
        return torch.where(rare[labels.clamp_min(0)], -1, labels)

    def _declared(self, codes: dict[bytes, int]) -> Tensor | None:
        if not isinstance(self.data.config.prior, dict):
            return None
        shares = torch.zeros(self.sizes.classes)
        for name, share in self.data.config.prior.items():
            key = digests([name], self.salt).tobytes()
            if key not in codes:
                raise ProtocolError(f"{self.name}: `prior` names a class that the federation does not have")
            shares[codes[key]] = share
        return shares

    def _parts(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "optimiser": self.optimiser, "nu": self.nu, "nu_optimiser": self.nu_optimiser}

    # A round

    def _step(self, payload: Payload) -> Payload:
        """Apply the gradient of the last batch, embed the next one."""
        if best := payload.meta.get("keep"):
            self._keep(best)
        self._learn(payload.tensors.get("gradient"))
        rows = batch_rows(
            len(self.aligned), self.config.training.batch, self.config.seed, "batch", self.round, payload.meta["step"]
        )
        self._x = self.aligned_rows(rows, payload.meta["step"])
        self._z = self.encoder(self._x[0]) * self._x[1]
        return Payload({"z": self._z.detach()})

    def aligned_rows(self, rows: Tensor, step: int | None = None) -> tuple[Tensor, Tensor]:
        """Features of aligned people and who is here (n x m, n x 1); in a training step cells may be swapped."""
        own, pool = self.aligned[rows], self.data.train.x
        x, here = pool[own.clamp_min(0)], (own >= 0).float()[:, None]
        if step is None:
            return x, here
        generator = torch.Generator().manual_seed(derive(self.config.seed, "augment", self.name, self.round, step))
        return corrupt(x, pool, self.config.training.augment, generator), here

    def _learn(self, gradient: Tensor | None) -> None:
        if gradient is None or self._x is None:
            return
        for repeat in range(self.config.training.stale):
            z = self._z if repeat == 0 else self.encoder(self._x[0]) * self._x[1]
            assert z is not None
            self.optimiser.zero_grad()
            torch.autograd.backward(z, gradient)
            self.optimiser.step()
        self._x = self._z = None

    def _local(self, payload: Payload) -> Payload:
        """Once a round: assign own rows to classes, train on those kept, return means, counts and shares."""
        t = payload.tensors
        self._learn(t.get("gradient"))
        with torch.no_grad():
            self.nu.copy_(t["nu"])
        z = self.embed(self.free_x)
        nameless = self.config.method.unseen == "nameless"
        aligned = self.embed(self.data.train.x[self.aligned[self.aligned >= 0]]) if nameless else None
        found = local_round.assign(
            z, self.free_labels, t["nu"], t["mu"], t["prior"], self.round, self.config.method, self.declared, aligned
        )
        generator = torch.Generator().manual_seed(derive(self.config.seed, "local", self.name, self.round))
        local_round.train(self.encoder, self.nu, [self.optimiser, self.nu_optimiser], self.free_x, found, t["mu"],
                          self.config.method, self.config.training, generator)  # fmt: skip
        kept = found.kept
        mass = found.weights[kept, None] * found.targets[kept]
        mu, counts = class_means(F.normalize(self.embed(self.free_x[kept]), dim=1), mass)
        counts = withhold(counts, self.config.exposure.min_count)
        self.shares = {"kept": len(kept) / max(len(z), 1)}
        if keep := self.config.training.average:
            now = average.weights({"encoder": self.encoder})
            self.average = average.moved(self.average, now, keep, self.round)
        if self.store:
            running = {f"average/{name}": tensor for name, tensor in self.average.items()}
            self.store.save_state(self.round, pack(self._parts()) | running)
        mu = torch.where(counts[:, None] > 0, mu, 0.0)
        return Payload({"nu": self.nu.detach().clone(), "mu": mu, "counts": counts, "prior": found.shares})

    @property
    def shown(self) -> nn.Module:
        """The network that predicts."""
        return average.averaged(self.encoder, "encoder", self.average)

    def embed(self, x: Tensor, encoder: nn.Module | None = None) -> Tensor:
        """Embeddings without gradients (n x d), by default by the network as it is trained."""
        encoder = encoder or self.encoder
        with torch.no_grad():
            found = [encoder(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)]
        return torch.cat(found) if found else torch.zeros(0, self.config.training.dim)

    def _keep(self, best: int) -> None:
        """Keep the networks of the best round so far by validation, which a party hears of before it trains again.

        Whoever was away since then still has them, or those with which it was away.
        """
        if best == self._best_round:
            return
        self._best, self._best_round = pack({"encoder": self.shown}), best
        if self.store:
            kept = self._best | {_ROUND: torch.tensor(best)}
            write_atomic(self.store.folder / _BEST, save(kept))

    def _predict(self, payload: Payload) -> Payload:
        """Embeddings of aligned people of a split; zeros for those who are not here."""
        meta = payload.meta
        train = meta["split"] == "train"
        rows, source = (self.aligned, self.data.train) if train else (self.tests, self.data.test)
        own = rows[meta["start"] : meta["stop"]]
        if source is None:
            return Payload({"z": torch.zeros(len(own), self.config.training.dim)})
        return Payload({"z": self.embed(source.x[own.clamp_min(0)], self.shown) * (own >= 0).float()[:, None]})

    # Coming back, and the end

    def _rejoin(self, payload: Payload) -> Payload:
        """Go back to the state of a committed round."""
        round, folder = payload.meta["round"], self.store.folder if self.store else None
        state = self.store.load_state(round) if self.store else None
        if state is None or folder is None:
            raise ProtocolError(f"{self.name} has no state of round {round}")
        with sound(aligned := folder / "align.safetensors"):
            align = load_file(aligned)
        self._set_up(align)
        unpack(self._parts(), state)
        self.average = {n.removeprefix("average/"): t for n, t in state.items() if n.startswith("average/")}
        self._x = self._z = None
        best = folder / _BEST
        with sound(best):
            self._best = load_file(best) if best.is_file() else None
        if self._best and _ROUND not in self._best:
            raise StoreError(
                f"{best} was written by an earlier version and does not say of which round it is, so the run cannot go on:"
                " finish it with the version that began it, or begin anew with another --out (over a network: with new"
                " folders `run` and `state` in all kits)"
            )
        self._best_round = int(self._best.pop(_ROUND)) if self._best else 0
        return Payload()

    def _finish(self, payload: Payload) -> Payload:
        """The end; where validation chose a round, its networks are those of the result."""
        if "best" in payload.meta:
            self._keep(payload.meta["best"])
        best = self._best if "best" in payload.meta else None
        unpack({"encoder": self.encoder}, best or pack({"encoder": self.shown}))
        self.average = {}
        if self.store:
            write_party(self.store.folder, self.encoder, self.data)
        return Payload()
