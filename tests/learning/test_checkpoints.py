"""A checkpoint goes straight to its file, and says why it could not."""

import contextlib
import errno
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mtl.learning.checkpoints import AtomicCheckpoints


def test_a_checkpoint_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    state = {"account": {}, "bank": torch.zeros(20_000_000)}
    tracemalloc.start()
    try:
        AtomicCheckpoints().save_checkpoint(state, tmp_path / "last.ckpt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "last.ckpt").stat().st_size > 80_000_000
    assert peak < 8_000_000
    assert torch.equal(AtomicCheckpoints().load_checkpoint(tmp_path / "last.ckpt")["bank"], state["bank"])


def test_a_full_disk_is_named_as_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None: ...

    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Full]:
        yield Full()

    monkeypatch.setattr("mtl.learning.checkpoints.atomic_write", full)
    with pytest.raises(OSError, match="No space left on device"):
        AtomicCheckpoints().save_checkpoint({"account": {}}, tmp_path / "last.ckpt")
