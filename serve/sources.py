"""Where served bundles lie, and whether something changed there.

A source, as TSERVE_BUNDLE names it, is a bundle's folder, a folder of bundles (every sub-folder with a bundle.json; the
sub-folder's name is the model's), or `bentoml:TAG`, a model of BentoML's store (`bentoml:NAME:latest` is always the
newest version). Folders may be symbolic links; each is looked up anew every time.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serve.bundle import NAME, BundleError


STORE = "bentoml:"
YOUNG_S = 2.0

Stamp = tuple[tuple[str, int, int, int, int], ...]
"""(file, inode, bytes, mtime_ns, ctime_ns) of every file of a folder; () where it is gone."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one bundle lies."""

    where: str
    """For messages to the operator: the folder, or bentoml:TAG."""
    name: str | None
    """What the place calls its model; None: the bundle says."""
    find: Callable[[], Path]
    """Look the folder up; BundleError if there is none. One that is given need not exist."""

    def look(self) -> tuple[Path, Stamp]:
        """The folder, and how it stands."""
        try:
            folder = self.find()
        except BundleError:
            return Path(), ()
        return folder, stamp_of(folder)


def finder(source: str) -> Callable[[], list[Place]]:
    """How to list the places of a source, in order, now and later; a folder that is no folder of bundles is one place,
    whatever is there. BundleError for a tag that BentoML's store lacks."""
    if source.startswith(STORE):
        tag = source.removeprefix(STORE)
        place = Place(where=source, name=tag.partition(":")[0], find=partial(stored, tag))
        place.find()
        return lambda: [place]
    folder = Path(source).absolute()
    if not os.path.exists(folder / NAME) and _several(folder):
        return partial(_several, folder)
    place = Place(where=str(folder), name=None, find=lambda: folder)
    return lambda: [place]


def stored(tag: str) -> Path:
    """The folder of a model in BentoML's store; BundleError if the store has none of this tag. Asks no network."""
    from bentoml import models

    try:
        return Path(models.get(tag).path)
    except Exception as error:  # of BentoML, of the file system, and of a half-written model.yaml
        raise BundleError(f"{STORE}{tag}: {error}; `bentoml models list` shows what there is") from None


def stamp_of(folder: Path) -> Stamp:
    """How the folder stands; () if it is gone. One that cannot be read has a stamp too: reading it tells why."""
    try:
        files = [os.path.join(inside, file) for inside, _, names in os.walk(folder, onerror=_raise) for file in names]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        return ((str(error), 0, 0, 0, 0),)
    return tuple(_row(file) for file in sorted(files))


def young(stamp: Stamp) -> bool:
    """Whether a file changed so lately that a further change may leave its times as they are.

    File systems keep times in ticks, of milliseconds at best, of two seconds at worst.
    """
    newest = max((max(mtime, ctime) for *_, mtime, ctime in stamp), default=0) / 1e9
    return abs(time.time() - newest) < YOUNG_S


def name_taken(name: str, *, where: str, has: str) -> BundleError:
    """The refusal of the bundle that lies at `where`: that at `has` is served by its name."""
    return BundleError(f"{where}: {has} has the model's name already, {name!r}")


def unknown_default(name: str, there: Iterable[str]) -> ValueError:
    """The refusal of a default model that is not served."""
    return ValueError(f"the default model cannot be {name!r}; there are: {', '.join(there)}")


def _several(folder: Path) -> list[Place]:
    """The sub-folders that hold a bundle; those with a dot in front are their writers' own."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []  # what is served of it is looked at by itself
    found = [folder / name for name in names if os.path.exists(folder / name / NAME)]
    return [Place(where=str(path), name=path.name, find=partial(Path, path)) for path in found]


def _row(file: str) -> tuple[str, int, int, int, int]:
    try:
        about = os.stat(file)
    except OSError:
        return file, 0, 0, 0, 0
    return file, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _raise(error: OSError) -> None:
    raise error
