"""An exported folder as a model on the Hugging Face hub."""

import re
from pathlib import Path

from distill.errors import UserError, one_line, require


def check_push(repo: str) -> None:
    """Check that a push to the hub can begin, before anything is done.

    Args:
        repo: The id of the model, USER/NAME or ORGANISATION/NAME.

    Raises:
        UserError: `repo` is no id of a model, or there is no token of the hub.
    """
    from huggingface_hub import get_token

    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
        raise UserError(f"--push-to-hub: must be USER/NAME or ORGANISATION/NAME, got {repo!r}")
    require(get_token() is not None, "--push-to-hub: no token of the hub: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload an exported folder to the Hugging Face hub.

    Files that the model has and the folder lacks stay on the hub. The folder itself is only read.

    Args:
        folder: The exported folder.
        repo: The id of the model, which is created if needed.
        private: Whether the model must be private.

    Returns:
        The address of the model.

    Raises:
        UserError: The hub cannot be reached or refuses, or `private` is asked of a model that exists and is public.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repo).private:
            raise UserError(f"'{repo}' exists and is public")
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="distill export")
    except Exception as error:  # no network, no permission, a full quota: the client raises many types
        raise UserError(f"--push-to-hub: {one_line(error)} ('{folder}' is complete, and not on the hub)") from error
    return str(url)
