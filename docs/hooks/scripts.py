"""A page that links a script of `trainers/scripts` shows it, folded, at its end: no download is needed to read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\]\(((?:[\w./]*/)?scripts/\w+\.py)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Append each linked script once."""
    folder = Path(config["docs_dir"], page.file.src_uri).parent
    parts = [markdown]
    for link in dict.fromkeys(_LINK.findall(markdown)):
        source = (folder / link).resolve().read_text(encoding="utf-8").rstrip()
        indented = "\n".join(f"    {line}".rstrip() for line in source.splitlines())
        parts.append(f'\n??? example "{Path(link).name}"\n\n    ```python\n{indented}\n    ```\n')
    return "\n".join(parts)
