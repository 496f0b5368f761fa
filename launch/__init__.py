"""The `distill` command, which alone reads argv and the environment."""

import os
import sys
from pathlib import Path

# `python -m launch.main`, which torchrun and accelerate launch run, puts the working directory on the path. A folder in
# it that has the name of a library would be imported in the library's place. In this package, argv[0] is still "-m".
if sys.argv[0] == "-m" and sys.path[0] in ("", os.getcwd()) and os.getcwd() != str(Path(__file__).parents[1]):
    del sys.path[0]
