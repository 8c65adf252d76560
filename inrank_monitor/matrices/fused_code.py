"""How a module's own code takes a fused projection apart: read in its source, never run.

Two layouts are in use for q, k and v of one weight: three blocks, or every head's own three side by side. Both have the
same shape, so shapes cannot tell them apart; the code that takes them apart can.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

_HEADS = (
    r"(?<![\w.])(?:\w+\.)*"
    r"(?:n_?heads?|num_heads|num_attention_heads|num_attention_heads_per_partition|heads|nheads?|n[hH]|[hH])"
)
_WIDTH = (
    r"(?<![\w.])(?:\w+\.)*"
    r"(?:head_dim|dim_head|head_size|d_head|attention_head_size|hidden_size_per_(?:attention_)?head|h[sd]|dh|d_k)"
)
_EINOPS_HEADS = ("h", "head", "heads", "nh", "n_head", "n_heads", "num_heads")
_EINOPS_WIDTH = ("d", "dim", "c", "ch", "e", "dh", "hd", "d_head", "dim_head", "head_dim")
_CALL = r"self\.{name}\((?:[^()]|\([^()]*\))*\)"
Arrangement = Literal["blocks", "heads", "unclear"]


@lru_cache(maxsize=512)
def code_of(kind: type) -> str:
    """The methods of a class of modules but `__init__`, without comments and on normal lines; empty if there are none.

    Those of the classes that it is made from are among them, torch's own are not.
    """
    seen, texts = {"__init__"}, []
    for each in kind.__mro__:
        if each.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):  # typed into a terminal, compiled: there is nothing to read
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for part in body:
            if isinstance(part, ast.FunctionDef) and part.name not in seen:
                seen.add(part.name)
                texts.append("\n".join(ast.unparse(line) for line in part.body if not _is_text(line)))
    return "\n".join(texts)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


@lru_cache(maxsize=512)
def arrangement(kind: type, name: str, count: int) -> Arrangement | None:
    """How the code of a class arranges `count` parts in the output of its layer `name`; None if it does not say.

    Args:
        kind: class of the module that holds the layer.
        name: of the layer there.
        count: parts, of one size each.
    """
    code = code_of(kind)
    if f"self.{name}(" not in code:
        return None
    bare = _bare(code, name)
    reshaped = rf"(?:{bare})\.(?:view|reshape|unflatten)\([^\n]*?"
    heads = rf"{_HEADS}, {count}\b|\b{count} \* {_WIDTH}\b|{_WIDTH} \* {count}\b|{reshaped}(?<!\d, ){_HEADS}, -1[\])]"
    blocks = rf"\b{count}, {_HEADS}\b|\b{count}, -1, {_WIDTH}\b"
    inside = rf"{_WIDTH}, {count}\b|{reshaped}, {count}[\])]"  # neither: every third row is of one part
    found = {
        "heads": bool(re.search(heads, code)),
        "blocks": bool(re.search(blocks, code)) or split_directly(kind, name, count) is not None,
        "unclear": bool(re.search(inside, code)),
    }
    for axes in re.findall(r"\((\w+ \w+ \w+)\)", code):
        if way := _einops(axes.split()):
            found[way] = True
    if not any(found.values()):
        return "unclear" if re.search(rf"self\.\w+\((?:{bare})[,)]", code) else None  # some other method cuts it
    return next(way for way in ("unclear", "heads", "blocks") if found[way]) if sum(found.values()) == 1 else "unclear"


def _einops(axes: list[str]) -> Arrangement | None:
    """How `(qkv h d)` and the like lay parts out; None for three axes that are no heads of parts."""
    kinds = "".join("h" if axis in _EINOPS_HEADS else "d" if axis in _EINOPS_WIDTH else "p" for axis in axes)
    if kinds == "phd":
        return "blocks"
    return "heads" if kinds == "hpd" else "unclear" if sorted(kinds) == ["d", "h", "p"] else None


@lru_cache(maxsize=512)
def is_reshaped(kind: type, name: str) -> bool:
    """Whether the layer's bare output is given other dimensions before it is cut."""
    bare = _bare(code_of(kind), name)
    return bool(re.search(rf"(?:{bare})\.(?:view|reshape|unflatten)\(|rearrange\((?:{bare})[,)]", code_of(kind)))


@lru_cache(maxsize=512)
def split_by_sizes(kind: type, name: str) -> tuple[str, ...]:
    """What the parts are called where the layer's bare output is cut by a list of sizes; empty where it is not."""
    code = code_of(kind)
    found = re.search(rf"^\s*\(?((?:\w+, )+\w+)\)? = (?:{_bare(code, name)})\.split\([\[(]", code, re.MULTILINE)
    return tuple(found[1].split(", ")) if found else ()


def _bare(code: str, name: str) -> str:
    """A pattern for the layer's output: its call, or what that is called."""
    return "|".join([*(rf"\b{each}" for each in set(_variables(code, name))), _CALL.format(name=re.escape(name))])


def _variables(code: str, name: str) -> list[str]:
    """What the layer's bare output is called."""
    return re.findall(rf"^\s*(\w+) = {_CALL.format(name=re.escape(name))}$", code, re.MULTILINE)


@lru_cache(maxsize=512)
def split_directly(kind: type, name: str, count: int) -> tuple[str, ...] | None:
    """What the parts are called where the layer's bare output is cut into `count` pieces; None where it is not.

    `q, k, v = self.c_attn(x).split(…)`, or the same in two lines. Empty where the pieces get no names of their own.
    """
    code = code_of(kind)
    if f"self.{name}(" not in code:  # one of thousands of layers in a list, most likely
        return None
    call = _CALL.format(name=re.escape(name))
    sources = [(call, code)]
    for variable in set(_variables(code, name)):
        for found in re.finditer(rf"^\s*{variable} = {call}$", code, re.MULTILINE):
            rest = code[found.end() :]
            again = re.search(rf"^\s*(?:\w+, )*{variable}(?:, \w+)* = (?!.*\b(?:split|chunk)\b)", rest, re.MULTILINE)
            sources.append((rf"\b{variable}", rest[: again.start()] if again else rest))
    along = r", (?!(?:dim=)?0\))"  # not over the batch, which is also what no dimension means
    one = r"(?![\[(]|\d+ \*)(?:[^(),]|\([^()]*\))+"  # one size for all
    for source, text in sources:
        cut = rf"(?:{source}\.(?:chunk\({count}{along}|split\({one}{along})"
        cut += rf"|(?:torch\.)?(?:chunk\({source}, {count}{along}|split\({source}, {one}{along}))"
        if taken := re.search(rf"^\s*\(?((?:\w+, )*\w+)\)? = {cut}", text, re.MULTILINE):
            names = tuple(taken[1].split(", "))
            if len(names) == count or (len(names) == 1 and "split(" not in taken[0]):
                return names if len(names) == count else ()
    return None


def letters_of(names: Iterable[str]) -> str:
    """q, k or v for each name that means one of them: `query_states` -> q; other names have no letter."""
    found = (re.fullmatch(r"(q|k|v|query|key|value|queries|keys|values|val)s?\d*(_\w+)?", name) for name in names)
    return "".join(each[1][0] if each else "?" for each in found)


def orders(kind: type, letters: str) -> set[str]:
    """In which orders the code gives names that begin with these letters to as many values at once: `qkv`, say."""
    several = re.findall(rf"^\s*\(?((?:\w+, ){{{len(letters) - 1}}}\w+)\)? = ", code_of(kind), re.MULTILINE)
    found = {letters_of(names.split(", ")) for names in several}
    return {order for order in found if sorted(order) == sorted(letters)}


def has_stepped_slices(kind: type) -> bool:
    """Whether the code takes every second value of something: parts that lie like the teeth of a zip."""
    return bool(re.search(r"::\s*2\b", code_of(kind)))
