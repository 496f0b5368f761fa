"""Silence of the libraries of models while they load, save and run a part for us."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = r"(diffusers|transformers|peft|huggingface_hub|accelerate|torch)(\.|$)"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the progress bars, the advice and the deprecations of diffusers and transformers, and show them afterwards.

    They concern the libraries' own code or the way in which it is called, which is not the user's. Errors still show.
    """
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    levels = diffusers.get_verbosity(), transformers.get_verbosity()
    bars = diffusers.is_progress_bar_enabled(), transformers.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=LIBRARIES)
        for library in (diffusers, transformers):
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, level, bar in zip((diffusers, transformers), levels, bars, strict=True):
                library.set_verbosity(level)
                if bar:
                    library.enable_progress_bar()
