"""The base of a pipeline that takes its code and its card along when it is saved.

This class is written into the files of the pipelines that travel with exported weights.
"""

import json
from pathlib import Path
from typing import Any


class Travelling:
    """A pipeline of diffusers whose `save_pretrained` writes this file and the card of the export as well."""

    _pictures = ("samples.png", "samples/*.png", "samples/prompts.json")  # beside the card
    _code = Path(__file__).read_text("utf-8")  # now, since diffusers replaces the file when it loads another export

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the pipeline with its code and its card.

        Raises:
            ValueError: The card cannot be found, or a push to the hub would replace it.
        """
        if push_to_hub:
            raise ValueError("push_to_hub: replaces the model card; save the pipeline and upload the folder")
        card, pictures = self._card()
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]  # of the pipeline
        (Path(save_directory) / "pipeline.py").write_text(self._code, "utf-8")
        if card is not None:
            (Path(save_directory) / "README.md").write_text(card, "utf-8")
        for name, content in pictures.items():
            (Path(save_directory) / name).parent.mkdir(exist_ok=True)
            (Path(save_directory) / name).write_bytes(content)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, because diffusers would write a card of its own."""
        raise ValueError("push_to_hub: replaces the model card; save the pipeline and upload the folder")

    def to_json_string(self) -> str:
        """Return model_index.json, in which files of code have the names that they have in the folder."""
        index = json.loads(super().to_json_string())  # type: ignore[misc]  # of the pipeline
        index["_class_name"] = ["pipeline", type(self).__name__]
        index.pop("_name_or_path", None)  # a path of this machine
        for entry in index.values():
            if isinstance(entry, list) and str(entry[0]).startswith("diffusers_modules."):
                entry[0] = entry[0].rpartition(".")[2]
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def _card(self) -> tuple[str | None, dict[str, bytes]]:
        """Return the README.md and the pictures of the folder, or of the model on the hub, that was loaded."""
        from huggingface_hub import snapshot_download

        origin = self.name_or_path  # type: ignore[attr-defined]  # of the pipeline
        if origin is None:  # it was constructed and not loaded
            return None, {}
        try:
            folder = Path(origin)
            if not folder.is_dir():
                folder = Path(snapshot_download(str(origin), allow_patterns=["README.md", *self._pictures]))
            elif not (folder / "README.md").exists():
                return None, {}
            files = [file for name in self._pictures for file in folder.glob(name) if file.is_file()]
            pictures = {str(file.relative_to(folder)): file.read_bytes() for file in files}
            return (folder / "README.md").read_text("utf-8"), pictures
        except Exception as error:  # no network, no such model, no card, no id at all
            line = f"the model card in '{origin}' cannot be read, and a copy must have it"
            raise ValueError(f"save_pretrained: {line}") from error
