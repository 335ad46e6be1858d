"""The names of the label rules; apart from what applies them, which needs pandas."""

from typing import Literal

LabelRule = Literal[
    "consensus", "article", "consensus_clear", "lora", "any_reader", "luna_fmcib", "tcia_diagnosis", "given"
]
