"""An exported folder as a model on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from distill.errors import UserError, one_line


def check_push(repo: str) -> None:
    """Raise UserError, before anything is done, for what is no model's id and where nobody is logged in."""
    from huggingface_hub import get_token

    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
        raise UserError(f"--push-to-hub: must be USER/NAME or ORGANISATION/NAME, got {repo!r}")
    if get_token() is None:
        raise UserError("--push-to-hub: no token of the hub: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload an exported `folder` as the model `repo`, which is made if need be; returns its address.

    Files of the model that the folder does not have stay. Raises UserError where the hub cannot be reached or refuses,
    and where a model that exists is to be `private` and is not. `folder` is only read.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repo).private:
            raise UserError(f"'{repo}' exists and is public")
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="distill export")
    except Exception as error:  # no network, no permission, a full quota: the client has many kinds
        raise UserError(f"--push-to-hub: {one_line(error)} ('{folder}' is complete, and not on the hub)") from error
    return str(url)
