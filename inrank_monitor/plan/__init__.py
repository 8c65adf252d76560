"""What a snapshot will cost, before the run: seconds, memory, disk and traffic of a model that need not be there.

    matrices by their shapes + speeds of this machine -> costs -> what a budget allows, and the line to copy

`models` finds the matrices, a `scenario` is what is asked; `calibration` measures, `recorded` writes one made-up
snapshot to see how large it is;
`quantities`, `costs` and `memory` are arithmetic; `advice` and `text` say what it means.
"""

from __future__ import annotations
