"""Settings of a TriLoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from peft.config import PeftConfig


class RowLayout(TypedDict):
    """Which rows of a fused map belong to which of its parts; see ``parts`` of `TriLoraConfig`."""

    sizes: list[int]
    interleave: NotRequired[int]


class _MethodName(str):
    """Stands in for a member of PEFT's closed ``PeftType`` enum: same value, hash and equality as its string."""

    @property
    def value(self) -> str:
        return str.__str__(self)

    @property
    def name(self) -> str:
        return self.value

    def __str__(self) -> str:
        # get_model_status() and the model card cut the text after the last dot.
        return f"PeftType.{self.value}"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


TRILORA = _MethodName("TRILORA")


@dataclass
class TriLoraConfig(PeftConfig):
    """Sparsified triple matrix decomposition, ``delta W = scaling * B (T + rho I) A`` (H2Tune, arXiv 2507.22633).

    Args:
        r: rank; rows of A, columns of B, and the side of the middle matrix T.
        residual: ``True`` is rho = 1 (the published form; B starts at 0), ``False`` is rho = 0 (T starts at 0).
        framed: how many leading coordinates have rho = 0 where ``residual`` is set: they are reached through T alone,
            the others are a plain LoRA beside it.
        scaling: the factor s in front of B.
        dropout: dropout on the input of A.
        shift: a trained vector q beside T, ``y += s B q`` (Co-LoRA, arXiv 2506.11024).
        offset: a frozen dense part W of this adapter, ``y += W x``, for methods that write into the base weights
            (FLoRA, FedEx-LoRA): clients that share a base in memory each have their own.
        target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as in LoRA.
        parts: for fused maps, by the end of the module's name: ``{"sizes": [rows of q, k, v], "interleave": h}``.
            Each part has its own rows of B and its own T; A is shared. ``interleave`` is the number of heads (groups
            of heads) whose rows alternate q, k, v (GPT-NeoX); 0 means that the parts lie one after the other.
    """

    r: int = field(default=16, metadata={"help": "Rank: rows of A, columns of B, side of T."})
    residual: bool = field(default=True, metadata={"help": "rho = 1 (B starts at 0) or rho = 0 (T starts at 0)."})
    framed: int = field(default=0, metadata={"help": "Leading coordinates without the residual."})
    scaling: float = field(default=1.0, metadata={"help": "The factor in front of B."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of A."})
    shift: bool = field(default=False, metadata={"help": "Train a vector q beside T."})
    offset: bool = field(default=False, metadata={"help": "A frozen dense part beside the factors."})
    target_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "As in LoRA."})
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "As in LoRA."})
    target_parameters: list[str] | None = field(default=None, metadata={"help": "Not supported; must stay empty."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "As in LoRA."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "As in LoRA."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "As in LoRA."})
    bias: str = field(default="none", metadata={"help": "Only 'none' is supported."})
    parts: dict[str, RowLayout] | None = field(default=None, metadata={"help": "Row layout of fused maps."})
    init_weights: bool = field(default=True, metadata={"help": "False leaves A and B as they are (for loading)."})

    def __post_init__(self) -> None:
        PeftConfig.__post_init__(self)
        self.peft_type = TRILORA
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.r < 1:
            raise ValueError(f"r must be at least 1, got {self.r}.")
        if not 0 <= self.framed <= self.r:
            raise ValueError(f"framed must lie between 0 and r = {self.r}, got {self.framed}.")
        if self.bias != "none":
            raise ValueError(f"TriLoRA trains no biases: bias must be 'none', got {self.bias!r}.")
        if self.target_parameters:
            raise ValueError("TriLoRA adapts modules, not single parameters: leave target_parameters empty.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform.")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs a list of target_modules, not a pattern.")

    def parts_of(self, module_name: str) -> RowLayout | None:
        """The row layout of a module whose full name ends with one of the keys of ``parts``."""
        for ending, layout in (self.parts or {}).items():
            if module_name == ending or module_name.endswith("." + ending):
                return layout
        return None
