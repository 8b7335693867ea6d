"""Whose a mount is, by its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.wipe_mounts import Ground

RUN, STATE = Path("/run/pw"), Path("/var/lib/pw")
INSIDE, APART = STATE / "images", Path("/data/images")


@pytest.mark.parametrize("images", [INSIDE, APART])
def test_places_of_ours(images):
    ground = Ground(RUN, STATE, images)
    ours = [
        RUN / "containers/ID/rootfs",
        RUN / "containers/ID/image-volumes/1",
        RUN / "pods/ID/shm",
        RUN / "namespaces/ID/net",
        RUN / "programs/crun/crun",
        RUN / "probe/user",
        images / "mounts/5",
        images / "staging/probe/target",
        images / "probe-mapping/lower",
    ]
    assert ground.own(ours) == ours
    assert not ground.foreign(ours)


@pytest.mark.parametrize("images", [INSIDE, APART])
def test_disks_at_our_directories_are_the_operators_and_hold_what_is_ours(images):
    ground = Ground(RUN, STATE, images)
    disks = [
        images / "layers",
        images / "mounts",
        RUN / "exits",
        RUN / "pods",
        STATE / "containers",
    ]
    if images == INSIDE:
        disks.append(images)
    assert not ground.own(disks)
    assert ground.foreign(disks) == disks
    assert all(map(ground.holds_ours, disks))


def test_anything_else_is_not_known():
    ground = Ground(RUN, STATE, INSIDE)
    places = [STATE / "backup", STATE / "containers/ID/upper", INSIDE / "layers/5", RUN / "x/y"]
    assert not ground.own(places)
    assert ground.foreign(places) == places
    assert not any(map(ground.holds_ours, places))
    assert not ground.foreign([RUN, STATE, APART, Path("/")])
