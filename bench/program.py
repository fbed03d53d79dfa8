"""Another program as a process of a bench: `python -m bench.program PROGRAM ARGUMENT …` becomes it,
and it ends with the bench."""

from __future__ import annotations

import os
import sys

from payswitch.process import die_with_parent

if __name__ == "__main__":
    die_with_parent(os.getppid())
    os.execvp(sys.argv[1], sys.argv[1:])
