"""Source files that travel with exported weights. Each needs torch and diffusers alone."""

from importlib.resources import files

BASE = "from distill.export.shipped.travelling import Travelling\n"


def shipped_source(name: str) -> str:
    """Return the text of the file `name`.py in this folder, in which the class Travelling stands, if it is used."""
    text = (files(__name__) / f"{name}.py").read_text("utf-8")
    if BASE not in text:
        return text
    source = (files(__name__) / "travelling.py").read_text("utf-8")
    imports, body = source[source.index("import json") :].split("\n\n\n", 1)
    return text.replace(BASE, f"{imports}\n\n\n{body}", 1)
