"""The state of mtl's code: its commit, what was changed since, and files that are not in any commit.

Git is asked once a process, as the code is imported once. Where it cannot say, `Code.reason` says why.
"""

import functools
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PATIENCE = 2.0  # seconds for all that git is asked
LISTED = 200  # untracked files that are named
LONGEST_PATCH = 5_000_000  # bytes


@dataclass(frozen=True)
class Code:
    """The state of the code.

    Attributes:
        commit: that is checked out, None where it is not known.
        patch: `git diff HEAD` of tracked files, empty where nothing was changed.
        untracked: bytes of each new file among the code, by its path; None where it is not known.
        reason: why the commit or the changes are not known.
    """

    commit: str | None = None
    patch: bytes = b""
    untracked: dict[str, int] | None = None
    reason: str | None = None

    @property
    def dirty(self) -> bool:
        """Whether there is code that the commit lacks."""
        return bool(self.patch or self.untracked)


@functools.cache
def read_code(package: Path = PACKAGE) -> Code:
    """Return the state of the code of `package` and of the folder `experiments` beside it."""
    if not _inside_repository(package):
        return Code(reason="mtl is not in a git repository")
    folders = [str(package), *([str(package.parent / "experiments")] if (package.parent / "experiments").is_dir() else [])]
    questions = {
        "commit": ["rev-parse", "HEAD", "HEAD:./__init__.py"],
        "patch": ["diff", "--no-ext-diff", "--no-color", "HEAD"],
        "untracked": ["ls-files", "-z", "--others", "--exclude-standard", "--", *folders],
    }
    try:
        answers = _ask(package, list(questions.values()))
    except FileNotFoundError:
        return Code(reason="git is not installed")
    except subprocess.TimeoutExpired:
        return Code(reason=f"git took longer than {PATIENCE:g} s")
    commit, patch, untracked = answers
    if commit is None:
        # An installed package may be inside of another project's repository.
        return Code(reason="mtl is in no commit of the git repository that it is in")
    if patch is None or untracked is None:
        return Code(reason="git could not read the repository")
    return Code(commit.decode().split()[0], *_bounded(package, patch, untracked))


def _bounded(package: Path, patch: bytes, untracked: bytes) -> tuple[bytes, dict[str, int], str | None]:
    """The patch, the untracked files with their sizes, and what of them is left out."""
    names = [name.decode(errors="replace") for name in untracked.split(b"\0") if name]
    reasons = []
    if len(names) > LISTED:
        reasons.append(f"{len(names) - LISTED} more untracked files are not listed")
    if len(patch) > LONGEST_PATCH:
        reasons.append(f"the patch has {len(patch)} bytes and ends after {LONGEST_PATCH}")
    sizes = {name: path.lstat().st_size if (path := package / name).exists() else 0 for name in names[:LISTED]}
    paths = {str((package / name).resolve().relative_to(_top(package))): size for name, size in sizes.items()}
    return patch[:LONGEST_PATCH], paths, "; ".join(reasons) or None


def _top(package: Path) -> Path:
    """The folder of the repository that `package` is in."""
    return next(folder for folder in package.resolve().parents if (folder / ".git").exists())


def _inside_repository(package: Path) -> bool:
    return any((folder / ".git").exists() for folder in package.resolve().parents)


def _ask(folder: Path, questions: Sequence[Sequence[str]]) -> list[bytes | None]:
    """The answers of git to several questions at once, None where it refuses one."""
    processes = []
    end = time.monotonic() + PATIENCE
    try:
        for question in questions:
            # Without locks, as jobs of a sweep start at the same time.
            command = ["git", "--no-optional-locks", *question]
            processes.append(
                subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
        answers = [process.communicate(timeout=max(end - time.monotonic(), 0.01))[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [answer if process.returncode == 0 else None for process, answer in zip(processes, answers, strict=True)]
