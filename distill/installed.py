"""The command that installs an extra of this package from where the package came."""

import shlex
from importlib.metadata import requires
from pathlib import Path

NAME = "distill-onestep"
ROOT = Path(__file__).resolve().parents[1]


def install_command(extra: str) -> str:
    """Return the command that installs an extra, such as `onnx`.

    It installs the clone of the repository in which this code lies. Without one it names the packages of the extra, and
    never this package: it is on no index, and what an index has under its name would be somebody else's.
    """
    project = ROOT / "pyproject.toml"
    if project.is_file() and f'name = "{NAME}"' in project.read_text("utf-8"):
        return f"pip install -e {shlex.quote(f'{ROOT}[{extra}]')}"
    stated = [line.partition(";") for line in requires(NAME) or ()]
    wanted = [package.strip() for package, _, marker in stated if f"extra=='{extra}'" in _plain(marker)]
    return f"pip install {' '.join(map(shlex.quote, wanted))}"


def _plain(marker: str) -> str:
    """Return the marker of a requirement without spaces, and with one kind of quotes."""
    return marker.replace(" ", "").replace('"', "'")
