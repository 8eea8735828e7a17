"""Settings of Co-LoRA (arXiv 2506.11024)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from h2tune.declared import Settings


class CoLoraSettings(Settings):
    blocks: int = Field(4, ge=1, description="anchor blocks, at most as many as the shallowest model has")
    gamma: float = Field(1e-4, gt=0, description="ridge of the CCA")
    relevance: Literal["sketch", "uniform"] = Field("sketch", description="weights of the mixture")
    temperature: float = Field(0.5, gt=0, description="of the mixture's softmax")
    common: str = Field("zoo:llama", description="the small common model behind the sketches")
    directions: int = Field(4, ge=1, description="directions kept of each input and output, in multiples of the rank")
    sentences: int | None = Field(
        None,
        ge=20,
        description="anchors that models are aligned on, evenly taken; by default all (the guide grows with them)",
    )
