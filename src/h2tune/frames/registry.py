"""The kinds of frames there are: the package's own, and those that packages add by the entry point ``h2tune.frames``."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import entry_points

from h2tune.errors import MethodError
from h2tune.frames.anchor import ANCHOR
from h2tune.frames.base import FrameKind
from h2tune.frames.effect import EFFECT
from h2tune.frames.unshared import RANDOM, WEIGHTS

OWN = {kind.name: kind for kind in (ANCHOR, EFFECT, RANDOM, WEIGHTS)}


@cache
def kind_of(name: str) -> FrameKind:
    """The kind of frames of this name.

    Raises:
        MethodError: there is none, naming the nearest.
    """
    if name in OWN:
        return OWN[name]
    added = {entry.name: entry for entry in entry_points(group="h2tune.frames")}
    if name in added:
        kind = added[name].load()
        if not isinstance(kind, FrameKind):
            raise MethodError(f"method.frames: the entry point {name!r} of h2tune.frames does not name a FrameKind")
        return kind
    known = sorted({*OWN, *added})
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
    raise MethodError(f"method.frames: there are no frames {name!r}. {hint}")
