"""The list: for each invariant S1 to S5 of the ledger and each net against a lost race, how the code could be wrong."""

from __future__ import annotations

from dataclasses import dataclass

_STORE = "tests/unit/test_ledger_store.py"
_MODEL = "tests/property/test_ledger_model.py"
_ARBITRATION = "tests/property/test_arbitration_model.py"
_EVIDENCE = "tests/unit/test_evidence.py"
_RECONCILE = "tests/unit/test_reconcile.py"
_EARLY = "tests/protocol/test_early_word.py"
_PLANES = "tests/protocol/test_daemon_planes.py"
_HEALING = "tests/unit/test_healing.py"
_HEALED = "tests/protocol/test_daemon_healing.py"
_CONTROL = "tests/protocol/test_daemon_control.py"


@dataclass(frozen=True, slots=True)
class Break:
    """One wrong line.

    Attributes:
        name: what is wrong.
        keeps: the invariant or the net that it breaks.
        file: where.
        old, new: the text to replace, there just once, and what with.
        tests: of which one has to fail.
    """

    name: str
    keeps: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BREAKS = (
    Break(
        "an answer leaves before the disk has it",
        "S1",
        "bridge/ledger/ledger.py",
        "        await asyncio.shield(done)\n",
        "        return\n",
        (_STORE, _ARBITRATION),
    ),
    Break(
        "a commit that failed is answered all the same",
        "S1",
        "bridge/ledger/ledger.py",
        "                    await self._read_back(batch, error)\n                    continue\n",
        "                    pass\n",
        (_STORE,),
    ),
    Break(
        "the disk is not waited for",
        "S1",
        "bridge/ledger/store.py",
        '"synchronous=FULL"',
        '"synchronous=OFF"',
        ("tests/unit",),
    ),
    Break(
        "what is held is handed out again",
        "S2 S3",
        "bridge/ledger/account.py",
        "if whole > 0 or used + use.amount > use.capacity:",
        "if False:",
        (_STORE, _MODEL, _ARBITRATION),
    ),
    Break(
        "the schema lets a part be booked twice",
        "S2 S3",
        "bridge/ledger/rows.py",
        "WHEN (SELECT used + NEW.amount > capacity FROM parts WHERE part = NEW.part)",
        "WHEN (SELECT 0 FROM parts WHERE part = NEW.part)",
        (_STORE,),
    ),
    Break(
        "two devices of one request may be the same",
        "S2 S3 H28",
        "bridge/ledger/account.py",
        "+ planned[use.part]\n",
        "\n",
        (_STORE, _MODEL),
    ),
    Break(
        "a quarantined device is handed out",
        "S2 S3",
        "bridge/ledger/account.py",
        "        if quarantine is not None:\n            since",
        "        if False:\n            since",
        (_STORE, "tests/unit/test_projection.py"),
    ),
    Break(
        "a reservation is not a hold",
        "S2, net 1",
        "bridge/ledger/ledger.py",
        "        changes += [PutHold(self._new(Plane.DRA, Phase.RESERVED, p, claim, now)) for p in fresh]\n",
        "",
        (_STORE, _MODEL),
    ),
    Break(
        "Unprepare alone ends a hold",
        "S4",
        "bridge/ledger/ledger.py",
        "            PutHold(replace(h, phase=Phase.RELEASING))\n",
        "            DropHold(h.id)\n",
        (_STORE, _MODEL),
    ),
    Break(
        "deallocation ends what is still prepared",
        "S4",
        "bridge/ledger/ledger.py",
        "if h.phase is not Phase.PREPARED and h.share not in still",
        "if h.share not in still",
        (_STORE, _MODEL),
    ),
    Break(
        "a kubelet that has just started is believed",
        "S4 H13",
        "bridge/ledger/evidence.py",
        "if not sighting.kubelet_stable:",
        "if False:",
        (_EVIDENCE,),
    ),
    Break(
        "a container that still runs is not looked for",
        "S4 H9",
        "bridge/ledger/evidence.py",
        "        if running:\n",
        "        if False:\n",
        (_EVIDENCE,),
    ),
    Break(
        "no grace for a pod that is still being admitted",
        "S4 H12",
        "bridge/ledger/evidence.py",
        "if hold.phase is Phase.GRANTED and age < grace.unmatched:",
        "if False:",
        (_EVIDENCE,),
    ),
    Break(
        "one look is enough to release",
        "S4",
        "bridge/ledger/evidence.py",
        "    return absence.last - absence.first >= grace.of(absence.trust)\n",
        "    return True\n",
        (_EVIDENCE, _RECONCILE),
    ),
    Break(
        "nothing to change is answered while what made it so is not on disk",
        "S1 H16",
        "bridge/ledger/ledger.py",
        "if not changes and self._committer is None:",
        "if not changes:",
        (_STORE, _ARBITRATION),
    ),
    Break(
        "a lost ledger is taken for a new one",
        "S5",
        "bridge/ledger/store.py",
        "        damage = _absence(path, used_before)\n",
        "        damage = None\n",
        (_STORE, "tests/protocol/test_daemon_recovery.py"),
    ),
    Break(
        "a damaged ledger begins empty and unquarantined",
        "S5",
        "bridge/ledger/store.py",
        "        if damage is not None:\n            write(",
        "        if False:\n            write(",
        (_STORE,),
    ),
    Break(
        "damage goes unseen",
        "S5",
        "bridge/ledger/store.py",
        "    if bad is not None:\n",
        "    if False:\n",
        (_STORE,),
    ),
    Break(
        "two daemons share a ledger",
        "S1",
        "bridge/ledger/store.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        (_STORE,),
    ),
    Break(
        "a device that the device plugin holds stays in the slice",
        "Q1, net 2 alone",
        "bridge/planes/projection.py",
        "    return min(quota, used + free_units(roster, account, device))\n",
        "    return quota\n",
        ("tests/unit/test_projection.py",),
    ),
    Break(
        "a device that DRA holds stays healthy",
        "Q1, net 2 alone",
        "bridge/planes/projection.py",
        "    room = free_units(roster, account, device)\n    # From the end",
        "    room = device.shares\n    # From the end",
        ("tests/unit/test_projection.py",),
    ),
    Break(
        "what a claim is seen allocated is not reserved",
        "net 1, Q3",
        "bridge/planes/reservations.py",
        "            await ledger.reserve(part.name, claim, picks)\n",
        "            pass\n",
        (_EARLY,),
    ),
    Break(
        "the scheduler is told of a lost device before the slices are without it",
        "net 1, Q3, H2",
        "bridge/planes/reservations.py",
        "                    await part.stored()\n",
        "                    pass\n",
        (_EARLY,),
    ),
    Break(
        "a pod may be bound before the kubelet was sent the news",
        "net 1, Q3",
        "bridge/planes/reservations.py",
        "                    await part.listed()\n",
        "                    pass\n",
        (_EARLY,),
    ),
    Break(
        "a lost claim is told that it may go on",
        "net 1, Q3",
        "bridge/planes/conditions.py",
        "    return names.elsewhere if verdict.refusal and not result.admin_access else names.reserved\n",
        "    return names.reserved\n",
        (_EARLY, "tests/unit/test_conditions.py"),
    ),
    Break(
        "devices wait for conditions that we may not set",
        "Q3 H25",
        "bridge/planes/binding.py",
        "        if not lacking:\n",
        "        if True:\n",
        (_EARLY,),
    ),
    Break(
        "devices wait for conditions that the cluster does not keep",
        "Q3 H25",
        "bridge/planes/binding.py",
        "        if self.active and fields & FIELDS:\n",
        "        if False:\n",
        (_EARLY,),
    ),
    Break(
        "admin access is a hold",
        "H26",
        "bridge/planes/claims.py",
        "for result in results if not result.admin_access)\n",
        "for result in results)\n",
        (_EARLY,),
    ),
    Break(
        "a reservation of a deallocated claim is kept for ever",
        "net 1, H4",
        "bridge/planes/deallocation.py",
        "_OPEN = (Phase.RELEASING, Phase.RESERVED)\n",
        "_OPEN = (Phase.RELEASING,)\n",
        (_EARLY,),
    ),
    Break(
        "a pod is moved although another claim has the device",
        "net 3, H43",
        "bridge/planes/conflicts.py",
        "    if any(hold.plane is not Plane.DEVICE_PLUGIN for hold in holders):\n",
        "    if False:\n",
        (_HEALING,),
    ),
    Break(
        "a pod is moved although somebody looks at the device with admin access",
        "net 3, H43",
        "bridge/planes/conflicts.py",
        "        if not who and claim.group == group and claim.holder.uid != loser.asker.claim.uid:\n",
        "        if False:\n",
        (_HEALING,),
    ),
    Break(
        "a pod that only asked for the extended resource is thought to be moved by a taint",
        "net 3",
        "bridge/planes/conflicts.py",
        "    if loser.extended_resource:\n",
        "    if False:\n",
        (_HEALING,),
    ),
    Break(
        "a claim that lost the race is left alone with it",
        "net 3",
        "bridge/planes/dra.py",
        "                self._around.healing.lost(loser)\n",
        "",
        (_HEALED,),
    ),
    Break(
        "a taint stays after its claim has gone",
        "net 3, H43",
        "bridge/planes/healing.py",
        "        taint.wanted -= 1\n",
        "",
        (_HEALED,),
    ),
    Break(
        "a claim gets a device whose taint may still be stored",
        "net 3, H43",
        "bridge/planes/healing.py",
        "        if (group, shown) not in self._taints:\n",
        "        if True:\n",
        (_CONTROL,),
    ),
    Break(
        "a device is released by force although it is open",
        "S4",
        "bridge/planes/release.py",
        "    if not force and (use.found or use.unknown):\n",
        "    if not force and use.unknown:\n",
        (_CONTROL,),
    ),
    Break(
        "a device is released by force although nobody can tell whether it is in use",
        "S4",
        "bridge/planes/release.py",
        "    if not force and (use.found or use.unknown):\n",
        "    if not force and use.found:\n",
        ("tests/unit/test_cli_operator.py",),
    ),
)
