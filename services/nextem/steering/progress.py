"""What is kept of steered acquisitions, so that a policy goes on after a restart of the service."""

from __future__ import annotations

import logging
from pathlib import Path

from nextem.steering.job import Job
from nextem.steering.policy import Following, PolicyError
from nextem.wire import checkpoints
from nextem.wire.folder_store import FolderObjects
from nextem.wire.object_store import StoreError

logger = logging.getLogger(__name__)


class Progress:
    """One checkpoint for each steered acquisition, in ``folder``; without one, nothing is kept.

    It holds the policy with what it took in and what it waits for, and which of its suggestions were sent.
    """

    def __init__(self, folder: Path | None) -> None:
        self._objects = None if folder is None else FolderObjects(folder)

    def keep(self, job: Job) -> None:
        """Before a command is sent: a restart then knows that it may have been."""
        if self._objects is None or not isinstance(job.policy, Following):
            return
        meta = {"name": job.name, "policy": job.policy.checkpoint(), "sent": sorted(job.sent)}
        try:
            checkpoints.write(self._objects, job.acquisition_id, {}, meta)
        except StoreError as error:
            logger.error("%s on acquisition %s cannot be saved: %s", job.name, job.acquisition_id, error)

    def restore(self, job: Job) -> None:
        """Puts a fresh job back to where it was. Raises :class:`nextem.steering.policy.PolicyError`."""
        if self._objects is None or not isinstance(job.policy, Following):
            return
        try:
            kept = checkpoints.read(self._objects, job.acquisition_id)
        except StoreError as error:
            raise PolicyError(f"its checkpoint cannot be read: {error}") from error
        if kept is None:
            return
        try:
            job.policy.restore(kept.meta["policy"])
            job.sent = {int(number) for number in kept.meta["sent"]}
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"its checkpoint is of another version: {error!r}") from error
        logger.info("%s goes on with acquisition %s", job.name, job.acquisition_id)
        job.suggest()

    def drop(self, job: Job) -> None:
        """It is over."""
        if self._objects is None:
            return
        self._objects.delete_tree(job.acquisition_id)
