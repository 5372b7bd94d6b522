"""A store's layout, its format, and how one is made and opened.

::

    STORE/
      ckfs.toml     format version and store id; written last, so that a half-made store is no store
      policy.toml   the cluster-wide policy
      ledger.toml   who keeps the ledger of quotas (see binding); limits.toml is a copy of what it says of limits
      names/        one symbolic link per set (see namelinks)
      users/<uid>/  the sets of each user, real files under readable names
      staging/      what is being made, and is linked into place when complete
      trash/<uid>/  what was removed (see trash); made on first use in stores that have none
      mounts/       which mounts there are (see mounts); made on first use too

A further store, in which files of another one's sets lie, has ckfs.toml, users/, staging/ and trash/ only.

A store whose engine enforces quotas has the layout of realms (see realms), which is format 2 and says so: a ckfs that does not
know it must not mount it. All others stay format 1.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.errors import CkfsError, NotPermitted, StoreUnusable
from ckfs.model import Owner, Record
from ckfs.names import ROOT_INODE, shown
from ckfs.policy import settings
from ckfs.policy.settings import Policy
from ckfs.store import attributes, record, texts
from ckfs.store.binding import BINDING_FILE
from ckfs.store.door import Door
from ckfs.store.entries import USERS
from ckfs.store.formats import FORMAT_FILE, read_form, read_own_form, text_of_new
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.limits import LIMITS_FILE
from ckfs.store.metering import Meter
from ckfs.store.mounts import Mounts
from ckfs.store.mountsdirectory import MOUNTS
from ckfs.store.namelinks import NAMES
from ckfs.store.realms import STAGING, TRASH, Arrangement
from ckfs.store.setnames import SetNames
from ckfs.store.spots import Spot
from ckfs.store.texts import Root
from ckfs.store.trash import Trash
from ckfs.store.volumes import Here, Volumes

_POLICY_FILE = b"policy.toml"
_DIRECTORIES = {NAMES: 0o755, USERS: 0o1777, STAGING: 0o1777, TRASH: 0o1777, MOUNTS: 0o755}
_FURTHER_DIRECTORIES = {USERS: 0o1777, STAGING: 0o1777, TRASH: 0o1777}
_HARMLESS = {*_DIRECTORIES, _POLICY_FILE, BINDING_FILE, LIMITS_FILE, b"lost+found"}
_UNFINISHED = tuple(map(texts.unfinished, (FORMAT_FILE, _POLICY_FILE, BINDING_FILE, LIMITS_FILE)))
"""What a writer of such a file that died may have left."""

_MOUNT_ROOT = Record(ROOT_INODE, ROOT.uid, ROOT.gid, stat.S_IFDIR | 0o1777)
"""What TORQUE insists on for its checkpoint directory."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open store: *root* stays this one, whatever is mounted at *path* later. *service* is the account that keeps unclaimed sets and the names."""

    path: str
    id: str
    root: Root
    door: Door
    names: SetNames
    trash: Trash
    mounts: Mounts
    service: Owner
    read_only: bool
    arrangement: Arrangement = Arrangement.SHARED

    def close(self) -> None:
        self.names.close()
        self.door.close()

    def open_users(self) -> int:
        """A descriptor of ``users/`` to list it by, which is the caller's to close."""
        return self.door.open_directory(USERS)

    @property
    def volumes(self) -> Volumes:
        """Its further stores."""
        return self.door.volumes

    def path_of(self, spot: Spot) -> bytes:
        """Where *spot* lies, as an admin of this host finds it; in a further store that it does not look for, as the policy says."""
        volume = self.volumes.get(spot.volume)
        top = self.path if volume is None else volume.path or volume.said.path
        return b"/".join((os.fsencode(top), *spot.components))

    def read_policy(self) -> Policy:
        """The policy as it is now; StoreUnusable if it is missing or wrong."""
        return settings.parse(self.policy_text())

    def policy_text(self) -> str:
        return policy_text(self.root)


def policy_text(where: str | Root) -> str:
    """What ``policy.toml`` of the store there says, though the store may be too damaged to be opened."""
    with texts.unusable(where), texts.root_of(where) as root:
        try:
            return texts.read_text(root.fd, _POLICY_FILE, root.path)
        except FileNotFoundError:
            raise StoreUnusable(
                f"{shown(root.path)}: its policy.toml is missing: restore it, or copy that of a new store"
            ) from None


@contextlib.contextmanager
def registry(path: str) -> Iterator[Mounts]:
    """The mounts of the store at *path*, to be read, though the store may be too damaged to be opened."""
    with texts.unusable(path):
        root_fd = texts.open_root(path)
    try:
        yield Mounts(root_fd, ROOT, read_only=True)
    finally:
        os.close(root_fd)


def directories() -> dict[bytes, int]:
    """The directories right in a store, with their modes."""
    return dict(_DIRECTORIES)


def root_record() -> Record:
    """What a new store says of the mounts' root, in the attribute of ``names/``."""
    return _MOUNT_ROOT


def check_format(path: str) -> None:
    """Raises StoreUnusable unless *path* is a store of a format that this ckfs knows."""
    with texts.unusable(path):
        root_fd = texts.open_root(path)
        try:
            read_own_form(root_fd, path)
        finally:
            os.close(root_fd)


def initialise(
    path: str,
    service: Owner = ROOT,
    arrangement: Arrangement = Arrangement.SHARED,
    policy: str = settings.DEFAULT_TEXT,
) -> bool:
    """Make a store at *path*; False if there is one already (which stays untouched). Raises StoreUnusable."""
    _make_top(path, service)
    with texts.unusable(path), texts.root_of(path) as root:
        return _initialise_at(root.fd, path, service, arrangement, policy)


def initialise_further(path: str, home: str, service: Owner = ROOT) -> tuple[bool, str]:
    """Make a further store of the store *home*, an id, at *path*; False if it is there already (which stays untouched). Its id,
    too. Raises StoreUnusable."""
    _make_top(path, service)
    with texts.unusable(path), texts.root_of(path) as root:
        present = {os.fsencode(name) for name in os.listdir(root.fd)}
        is_new = FORMAT_FILE not in present
        if is_new:
            _check_empty(present, path)
            with acting_as(service):
                _check_keeper(root.fd, path, service)
                for name, mode in _FURTHER_DIRECTORIES.items():
                    _make_directory(root.fd, name, mode)
                _check_attributes(root.fd, path)
                texts.write_text(root.fd, FORMAT_FILE, text_of_new(Arrangement.SHARED, home))
        form = read_form(root.fd, path)
        if form.home != home:
            whose = "a store by itself" if form.home is None else f"one of the store {shown(form.home)}"
            raise StoreUnusable(f"{shown(path)}: {whose} lies there already: give an empty directory")
        return is_new, form.id


def id_of(path: str) -> str:
    """The id of the store at *path*. Raises StoreUnusable."""
    with texts.unusable(path), texts.root_of(path) as root:
        return read_own_form(root.fd, path).id


def _make_top(path: str, service: Owner) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    except PermissionError:
        raise _squashed_top(path) from None
    except OSError as error:
        raise StoreUnusable(f"{shown(path)}: cannot make the directory: {error.strerror}") from None
    try:
        os.chown(path, service.uid, service.gid)
    except PermissionError:
        os.rmdir(path)
        raise _squashed_top(path) from None


def _squashed_top(path: str) -> NotPermitted:
    return NotPermitted(
        f"{shown(path)}: root may not make it: make the directory on the storage server, let an account own it,"
        " and name that with --service-user"
    )


def _initialise_at(root_fd: int, path: str, service: Owner, arrangement: Arrangement, policy: str) -> bool:
    present = {os.fsencode(name) for name in os.listdir(root_fd)}
    if FORMAT_FILE in present:
        read_own_form(root_fd, path)
        return False
    _check_empty(present, path)
    with acting_as(service):
        _check_keeper(root_fd, path, service)
        for name, mode in _DIRECTORIES.items():
            if name != TRASH or arrangement is Arrangement.SHARED:
                _make_directory(root_fd, name, mode)
        _check_attributes(root_fd, path)
        attributes.put(attributes.path_of(root_fd, NAMES), record.ATTRIBUTE, record.encode(_MOUNT_ROOT))
        if _POLICY_FILE not in present:
            texts.write_text(root_fd, _POLICY_FILE, policy)
        texts.write_text(root_fd, FORMAT_FILE, text_of_new(arrangement))
    return True


def _check_empty(present: set[bytes], path: str) -> None:
    foreign = sorted(name for name in present - _HARMLESS if not name.startswith(_UNFINISHED))
    if foreign:
        raise StoreUnusable(
            f"{shown(path)}: not a ckfs store, and not empty (there is {shown(foreign[0])}): give an empty directory"
        )


def _check_keeper(root_fd: int, path: str, service: Owner) -> None:
    """Refuse, before anything is made, to keep a store as somebody who may not write there, or is taken for another."""
    probe = b"%s%s" % (_UNFINISHED[0], secrets.token_hex(8).encode())
    try:
        fd = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600, dir_fd=root_fd)
    except PermissionError:
        reason = f"uid {service.uid} may not write there"
    else:
        made_by = os.fstat(fd).st_uid
        os.close(fd)
        os.unlink(probe, dir_fd=root_fd)
        if made_by == service.uid:
            return
        reason = f"what uid {service.uid} makes there belongs to uid {made_by}"
    raise NotPermitted(
        f"{shown(path)}: {reason}: let an account own the directory on the storage server, and name that with --service-user"
    )


def _make_directory(root_fd: int, name: bytes, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=root_fd)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root_fd)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _check_attributes(root_fd: int, path: str) -> None:
    token = b"probe-%s" % secrets.token_hex(8).encode()
    staging_fd = os.open(STAGING, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root_fd)
    try:
        fd = os.open(token, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600, dir_fd=staging_fd)
        try:
            os.setxattr(fd, b"user.ckfs", b"probe")
        except OSError as error:
            raise StoreUnusable(
                f"{shown(path)}: its file system keeps no user extended attributes ({error.strerror}): use one that does"
            ) from None
        finally:
            os.close(fd)
            os.unlink(token, dir_fd=staging_fd)
    finally:
        os.close(staging_fd)


def open_store(
    path: str,
    service: Owner = ROOT,
    *,
    read_only: bool = False,
    meter: Meter | None = None,
    only: str | None = None,
    here: Here | None = None,
) -> Store:
    """Open the store at *path*, if its id is *only*, and those of its further stores that this host reaches; *meter* hears what changes in
    what is charged. Raises StoreUnusable: missing, foreign, another, newer, damaged, unreachable."""
    with texts.unusable(path):
        root_fd = texts.open_root(path)
        try:
            form = read_own_form(root_fd, path)
            if only not in (None, form.id):
                raise StoreUnusable(
                    f"{shown(path)}: this is the store {shown(form.id)}, and store_id= says {shown(str(only))}:"
                    " see what is mounted there"
                )
            door = Door(root_fd, read_only=read_only, meter=meter, volumes=Volumes(form.id, here))
            if not read_only:
                _check_keeper_again(root_fd, path, service, is_local=door.is_local)
            names = SetNames(door, root_fd, service, form.arrangement, read_only=read_only)
            trash = Trash(door, names, service, form.arrangement)
            mounts = Mounts(root_fd, service, read_only=read_only)
        except BaseException:
            os.close(root_fd)
            raise
    root = Root(root_fd, path)
    with contextlib.suppress(CkfsError):  # whoever needs the policy says what is wrong with it
        door.volumes.follow(settings.parse(policy_text(root)).stores)
        door.volumes.look_at_all()
    return Store(path, form.id, root, door, names, trash, mounts, service, read_only, form.arrangement)


def _check_keeper_again(root_fd: int, path: str, service: Owner, *, is_local: bool) -> None:
    """Refuse to mount as somebody who may make no set: root where he is squashed, or another than the store's keeper."""
    with acting_as(service), contextlib.suppress(PermissionError):
        if os.access(NAMES, os.W_OK | os.X_OK, dir_fd=root_fd, effective_ids=True):
            if is_local:
                return
            # GlusterFS tells root that he may, whether he is squashed or not: this asks in earnest, and changes nothing.
            mode = stat.S_IMODE(os.stat(NAMES, dir_fd=root_fd, follow_symlinks=False).st_mode)
            os.chmod(NAMES, mode, dir_fd=root_fd)
            return
    keeper = os.stat(NAMES, dir_fd=root_fd, follow_symlinks=False).st_uid
    raise NotPermitted(
        f"{shown(path)}: uid {service.uid} may not write there: mount with service_user= and the account of uid {keeper},"
        " which keeps the store"
    )


def reachable_by_users(path: str) -> bool:
    """Whether users who are not root can walk to *path*, and so around ckfs to their own files in the store."""
    here = os.path.realpath(path)
    while True:
        if not os.stat(here).st_mode & stat.S_IXOTH:
            return False
        if here == "/":
            return True
        here = os.path.dirname(here)
