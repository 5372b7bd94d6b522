"""Peers that take part in a check: running, and having looked that they are where they should be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ckfs import __version__
from ckfs.names import shown
from ckfs.selftest.outcome import Check, Outcome, fail, not_tried, ok
from ckfs.selftest.peers import Line, PeerFailed, connected
from ckfs.selftest.place import Place
from ckfs.selftest.serving import PROOF
from ckfs.store.identity import acting_as

ALL = "peers.reached"
_PATIENCE = 1


class Joined:
    """A line to a peer that works in the same room, and so knows what is in it by the same relative paths."""

    def __init__(self, line: Line, place: Place) -> None:
        self._line = line
        self._place = place
        self.name = line.peer.name
        self.ask, self.answer, self.told = line.ask, line.answer, line.told

    def hello(self) -> dict[str, object]:
        place = self._place
        return self.told(
            "hello",
            room=os.path.join(self._line.peer.store, os.path.relpath(place.room, place.store)),
            uid=place.keeper.uid,
            gid=place.keeper.gid,
        )


@contextlib.contextmanager
def joined(place: Place, patience: int) -> Iterator[list[Joined]]:
    """All peers, who have said hello; none, if there are none. *patience* is that of the check."""
    with connected(place.peers, place.timeout_s * patience) as lines:
        peers = [Joined(line, place) for line in lines]
        for peer in peers:
            peer.hello()
        yield peers


def reach(place: Place) -> list[Outcome]:
    """An outcome for the first peer that cannot take part, or one for all that can."""
    if not place.peers:
        return [
            not_tried(ALL, "no other mount of the store was named", "give --hosts HOST,… or --other PATH")
        ]
    with acting_as(place.keeper), open(PROOF, encoding="ascii") as file:
        proof = file.read()
    try:
        with connected(place.peers, place.timeout_s * _PATIENCE) as lines:
            for line in lines:
                trouble = _trouble(Joined(line, place), proof, line)
                if trouble is not None:
                    return [trouble]
    except PeerFailed as error:
        mend = "root must reach each host by ssh without a password, and ckfs be installed there in the same place"
        return [fail(ALL, str(error), mend if any(peer.host for peer in place.peers) else "")]
    names = ", ".join(peer.name for peer in place.peers)
    return [ok(ALL, f"{len(place.peers)} beside this one: {names}", peers=len(place.peers))]


def _trouble(peer: Joined, proof: str, line: Line) -> Outcome | None:
    said = peer.hello()
    if said.get("version") != __version__:
        says = f"{peer.name}: ckfs {shown(str(said.get('version')))} is there, and {__version__} here"
        return fail(ALL, says, "install the same version on all hosts")
    if said.get("proof") != proof:
        says = f"{peer.name}: another file system than here is at {shown(line.peer.store)}"
        return fail(ALL, says, "mount the store there")
    return None


CHECKS = (Check((ALL,), reach, _PATIENCE + 1),)
