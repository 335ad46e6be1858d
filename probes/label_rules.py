"""The names of the label rules, in a module of their own because applying them needs pandas."""

from typing import Literal

LabelRule = Literal[
    "consensus", "article", "consensus_clear", "lora", "any_reader", "luna_fmcib", "tcia_diagnosis", "given"
]
