"""Which block of the model a matrix belongs to, and what it does there, told from its dotted name.

Names follow habits, not rules: what is not recognised is `"other"`, and nothing depends on it but colour and filters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NO_BLOCK = "outside the blocks"
OTHER = "other"
_BLOCK = re.compile(r"(?:^|\.)(?:[a-z_]*(?:h|blocks?|layers?|layer_?stack|stages?|resblocks)[._])?(\d+)(?=\.)", re.I)
_PART_ROLES = {"q": "q", "k": "k", "v": "v", "gate": "MLP gate", "up": "MLP in"}
# Looked for in this order in the module's path: the first that fits counts. `(^|[._])` and the like keep words whole.
_ROLES: tuple[tuple[str, str], ...] = (
    ("q", r"(^|[._])(q|query|q_proj|q_lin|wq|to_q)$"),
    ("k", r"(^|[._])(k|key|k_proj|k_lin|wk|to_k)$"),
    ("v", r"(^|[._])(v|value|v_proj|v_lin|wv|to_v)$"),
    ("attention input", r"(c_attn|in_proj|query_key_value|qkv|w_?pack|att_proj|attn\.(c_)?kv|(^|[._])(to_)?(kv|qk)$)"),
    ("attention output", r"(att\w*|mha)\.(.*\.)?(c_proj|out_proj|o_proj|o|wo|out_lin|dense|proj|to_out)(\.\d+)?$"),
    ("attention output", r"(^|[._])(o_proj|out_proj|out_lin|to_out)(\.\d+)?$"),
    ("MLP gate", r"(^|[._])(gate_proj|w1_gate|wi_0|gate)$"),
    ("MLP in", r"(^|[._])(gate_up(_proj)?|gate_and_up_proj|w12|w13)$"),
    ("MLP in", r"(^|[._])(c_fc|fc1|fc_in|up_proj|linear1|lin1|wi|wi_1|dense_h_to_4h|intermediate\.dense)$"),
    ("MLP out", r"(^|[._])(fc2|fc_out|down_proj|linear2|lin2|dense_4h_to_h)$"),
    ("MLP out", r"((mlp|ffn?|feed_?forward|densereludense)\.(c_proj|wo|w2|proj|out)|\d\.output\.dense)$"),
    ("MLP in", r"(mlp|ffn?|feed_?forward|densereludense)\.(w1|in)$"),
    ("embedding", r"(^|[._])(wte|wpe|embed\w*|\w*embeddings?|pos\w*_emb(ed)?|\w*tokens?)$"),
    ("head", r"(^|[._])(lm_head|head|classifier|score|decoder)$"),
)


def block_of(name: str) -> str:
    """The block that a matrix is in, counted as its name counts.

    >>> block_of("transformer.h.3.attn.c_attn.weight[q]"), block_of("lm_head.weight")
    ('block 3', 'outside the blocks')
    """
    found = _BLOCK.search(_module(name) + ".")
    return f"block {int(found.group(1))}" if found else NO_BLOCK


def role_of(name: str, part: str | None = None, kind: str = "") -> str:
    """What a matrix does: q, k, v, attention output, MLP in, MLP out, ….

    Args:
        name: dotted name, with `[part]` or without.
        part: of `run.matrices`, for parts of one weight.
        kind: class of the module, for layers that no habit names.

    >>> role_of("h.0.attn.c_attn.weight[q]", "q"), role_of("h.0.mlp.c_fc.weight"), role_of("h.0.attn.c_proj.weight")
    ('q', 'MLP in', 'attention output')
    """
    if kind.startswith(("LSTM", "GRU", "RNN")):
        return "recurrent" if "_hh" in name else "recurrent input"
    if part in _PART_ROLES:
        return _PART_ROLES[part]
    path = _module(name)
    for role, pattern in _ROLES:
        if re.search(pattern, path, re.IGNORECASE):
            return role
    return "convolution" if kind.startswith("Conv") and kind != "Conv1D" else OTHER


def matrix_groups(matrices: pd.DataFrame) -> pd.DataFrame:
    """`run.matrices` -> block and role of each matrix, in the same order."""
    import pandas as pd  # not with the package: a training loop has the roles of its matrices, and no tables

    rows = zip(matrices.index, matrices["part"], matrices["kind"], strict=True)
    roles = [role_of(str(name), part if isinstance(part, str) else None, str(kind)) for name, part, kind in rows]
    return pd.DataFrame({"block": [block_of(str(name)) for name in matrices.index], "role": roles}, matrices.index)


def select_matrices(groups: pd.DataFrame, blocks: Iterable[str] = (), roles: Iterable[str] = ()) -> list[str]:
    """Names of the matrices in some blocks and of some roles; an empty selection leaves nothing out."""
    wanted_blocks, wanted_roles = set(blocks), set(roles)
    kept = groups["block"].isin(wanted_blocks) | (not wanted_blocks)
    kept &= groups["role"].isin(wanted_roles) | (not wanted_roles)
    return [str(name) for name in groups.index[kept]]


def _module(name: str) -> str:
    """The owner's path: `h.0.mlp.c_fc.weight[q]` -> `h.0.mlp.c_fc`."""
    return re.sub(r"(?:(?:\.|^|_)weight)?(?:\[[^\]]*\])?$", "", name) or name
