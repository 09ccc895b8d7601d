"""An adapter put on a model hub, with its model card: one commit, or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from viapt.adapter_files import CARD, CONFIG, TENSORS
from viapt.artifact import save_pretrained
from viapt.errors import ArtifactError
from viapt.hub import asking, parse
from viapt.model import PromptedClassifier
from viapt.model_card import PLACE


def push_to_hub(
    model: PromptedClassifier,
    name: str,
    *,
    private: bool = True,
    message: str = "Upload an adapter of viapt",
    training: Mapping[str, Any] | None = None,
) -> str:
    """Put the adapter of `model` on the hub, where `viapt.load("hf://user/name")` finds it.

    The repository is made if there is none. The configuration tells what the backbone is called and the file that its
    weights were read from: where that is a path of this machine, others can read it, too.

    Args:
        name: "user/name", with or without hf:// before it.
        private: whether a repository that is made is; one that is there stays as it is.
        message: of the commit.
        training: as for `save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: the model cannot be saved, the hub refuses, or is out of reach.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repository, revision = parse(name)
    if revision is not None:
        raise ArtifactError(f"{name!r} names a revision", expected="user/name")
    shown = f"hf://{repository}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pretrained(model, scratch, training=training)
        card = (folder / CARD).read_text(encoding="utf-8").replace(PLACE, shown)
        files = {CARD: card.encode(), CONFIG: (folder / CONFIG).read_bytes(), TENSORS: (folder / TENSORS).read_bytes()}
    additions = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=data) for file, data in files.items()]
    with asking(shown, "check the network, and that HF_HUB_OFFLINE is not set"):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.create_commit(repository, additions, commit_message=message).commit_url)
