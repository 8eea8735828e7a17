"""TriLoRA: an adapter for PEFT, ``delta W = s B (T + rho I) A``, that lives outside PEFT.

Importing this package registers the method; doing so twice changes nothing.
"""

from typing import cast

import peft
from peft import PeftType, mapping

from h2tune.adapter.config import TRILORA, TriLoraConfig
from h2tune.adapter.export import save_lora
from h2tune.adapter.layer import TriLoraLayer, TriLoraLinear
from h2tune.adapter.model import TriLoraModel

__all__ = ["TRILORA", "TriLoraConfig", "TriLoraLayer", "TriLoraLinear", "TriLoraModel", "register", "save_lora"]


def register() -> None:
    """Make PEFT know TriLoRA.

    PEFT's own ``register_peft_method`` is for methods inside PEFT: it asks for a member of a closed enum.
    """
    name = cast(PeftType, TRILORA)  # to a dictionary it is one: same hash, and equal to its string
    peft.PEFT_TYPE_TO_CONFIG_MAPPING[name] = TriLoraConfig
    peft.PEFT_TYPE_TO_TUNER_MAPPING[name] = TriLoraModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[name] = TriLoraModel.prefix


register()
