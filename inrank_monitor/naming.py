"""Names of matrices as they are printed and as they are typed: what a table shows can be given back.

A table shows `0.attn[q]` for `gpt.h.0.attn.weight[q]`: without `.weight`, without what all names begin with, cut in the
middle where it is long. `find_name` and `select_names` read each of these; nothing else of the package reads names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches

_PART = re.compile(r"\[[^\[\]]*\]$")
_CUT = re.compile(r"(?=(…|\.{3}))")  # at each place: of four dots one is a name's


def glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` are wild; brackets are themselves, since they are part of names."""
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern), re.DOTALL)


def without_weight(name: str) -> str:
    """A matrix by its layer: `h.0.attn.weight[q]` -> `h.0.attn[q]`."""
    return re.sub(r"(?<=.)\.weight(?=\[|$)", "", name)


def find_name(typed: str, names: Iterable[str]) -> str:
    """The one matrix that is meant: its name, else as a table prints it, else a pattern that only it matches.

    Raises:
        LookupError: none is meant, or several could be; the message lists names near it.
    """
    known = list(dict.fromkeys(names))
    found = matching(typed, known)
    if len(found) == 1:
        return found[0]
    raise LookupError(f"{typed!r} could be {_listed(found)}" if found else unknown(typed, known))


def select_names(pattern: str, names: Iterable[str]) -> list[str]:
    """The matrices that a pattern means, in order: one by its name or printed name, all parts of one weight, or a glob.

    Returns:
        None at all if it matches nothing.

    Raises:
        LookupError: it has nothing wild in it and could be matrices of several weights.
    """
    found = matching(pattern, list(dict.fromkeys(names)))
    if len({_PART.sub("", name) for name in found}) > 1 and not set(pattern) & set("*?"):
        raise LookupError(f"{pattern!r} could be {_listed(found)}; '*{pattern}*' means all of them")
    return found


def filter_names(text: str, names: Iterable[str]) -> list[str]:
    """The names that a reader's filter leaves, in order; all of them for an empty one.

    A filter is a whole name, a glob for any part of one (`h.1?.mlp`), a label as tables print it, or a regular
    expression for any part. The first of these that any name fits counts; between slashes (`/w[12]$/`) it is a regular
    expression in any case.

    Raises:
        ValueError: it fits none, and is no regular expression either; or it stands between slashes and is none.
    """
    known, text = list(dict.fromkeys(names)), text.strip()
    if not text:
        return known
    only = len(text) > 1 and text.startswith("/") and text.endswith("/")
    if not only:
        wide = glob(f"*{_normal(text)}*")
        whole = [name for name in known if name == text]
        if found := whole or [name for name in known if wide.fullmatch(_normal(name))] or matching(text, known):
            return found
    try:
        pattern = re.compile(text[1:-1] if only else text, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"the filter {text!r} fits no matrix and is no regular expression: {error}") from None
    return [name for name in known if pattern.search(_normal(name))]


def common_pattern(names: Sequence[str]) -> str:
    """One name as it is, and one glob for several: `layers.0.experts.*.w1.weight`."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) > 1:
        return "*"
    return ".".join(column[0] if len(set(column)) == 1 else "*" for column in zip(*parts, strict=True))


def unknown(typed: str, names: Sequence[str]) -> str:
    """That there is no such matrix, and which ones are near."""
    if not names:
        return f"no matrix {typed!r}: there is none at all"
    return f"no matrix {typed!r}; there {'is' if len(names) == 1 else 'are'} {', '.join(near_names(typed, names))}"


def near_names(typed: str, names: Sequence[str]) -> list[str]:
    """Up to three names that look like a text, or the first three where none does."""
    forms = {form: name for name in reversed(names) for form in (without_weight(name), name)}
    near = dict.fromkeys(forms[form] for form in get_close_matches(typed, list(forms), n=6, cutoff=0.3))
    return list(near)[:3] or list(names[:3])


def matching(typed: str, names: Sequence[str]) -> list[str]:
    """All names that a text can mean, in the first way in which it means any."""
    if typed in names:
        return [typed]
    key = _normal(typed)
    tests: list[Callable[[str], bool]] = [
        lambda name: key == _normal(name),
        lambda name: key in _forms(name),
        lambda name: any(form.endswith(f".{key}") for form in _forms(name)),
        lambda name: any(key in (form, _PART.sub("", form)) for form in _forms(name)),
        lambda name: any(_PART.sub("", form).endswith(f".{key}") for form in _forms(name)),
    ]
    if cuts := [(key[: cut.start()], key[cut.end(1) :]) for cut in _CUT.finditer(key)]:
        tests.insert(1, lambda name: any(_is_cut(form, *cut) for form in _forms(name) for cut in cuts))
    if set(key) & set("*?"):
        pattern = glob(key)
        tests.append(lambda name: bool(pattern.fullmatch(_normal(name))))
        tests.append(lambda name: any(pattern.fullmatch(form) for form in _forms(name)))
        tests.append(lambda name: any(pattern.fullmatch(_PART.sub("", form)) for form in _forms(name)))
    for test in tests:
        if found := [name for name in names if test(name)]:
            return found
    return []


def _normal(text: str) -> str:
    """Letters with accents in one way of the two in which they can be written."""
    return unicodedata.normalize("NFC", text)


def _forms(name: str) -> Iterator[str]:
    """A name with and without `.weight`, and what terminals make of both that cannot show all of it."""
    for form in dict.fromkeys((_normal(name), _normal(without_weight(name)))):
        yield form
        if not (form.isascii() and form.isprintable()):
            yield "".join(letter if letter.isprintable() else "?" for letter in form)
            yield form.encode("ascii", "replace").decode()
            yield form.encode("ascii", "backslashreplace").decode()


def _is_cut(form: str, head: str, tail: str) -> bool:
    """Whether a label `head…tail` is this name's, or that of its end from some dot on."""
    ends = [form[place + 1 :] for place, letter in enumerate(form) if letter == "."]
    return any(
        len(end) > len(head) + len(tail) and end.startswith(head) and end.endswith(tail) for end in (form, *ends)
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
