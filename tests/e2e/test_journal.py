"""The judge itself: it sees double use where there is one, and none where there is none."""

from __future__ import annotations

import json

from tests.e2e import journal


def notes(*lines: str) -> list[journal.Note]:
    """A journal; each line `<time> <event> <holder> <path>`."""
    text = ""
    for line in lines:
        time, event, holder, path = line.split()
        text += f"{time} {time} {event} {holder} {path} 0\n"
    return journal.parse(text)


def test_one_after_another_is_fine() -> None:
    uses = journal.uses(notes("1 open a /d", "2 close a /d", "3 open b /d", "4 close b /d"))
    assert journal.double_uses(uses) == []
    assert journal.most_at_once(uses) == 1


def test_an_overlap_is_seen_even_behind_a_longer_use() -> None:
    uses = journal.uses(
        notes("1 open a /d", "2 open b /d", "3 close b /d", "4 open c /d", "5 close c /d", "9 close a /d")
    )
    assert [(x.holder, y.holder) for x, y in journal.double_uses(uses)] == [("a", "b"), ("a", "c")]
    assert journal.most_at_once(uses) == 2


def test_one_that_never_closed_still_has_it() -> None:
    uses = journal.uses(notes("1 open a /d", "5 open b /d", "6 close b /d"))
    assert [(x.holder, y.holder) for x, y in journal.double_uses(uses)] == [("a", "b")]


def test_different_devices_do_not_meet() -> None:
    uses = journal.uses(notes("1 open a /d", "1 open b /e", "3 close a /d", "3 close b /e"))
    assert journal.double_uses(uses) == []
    assert journal.most_at_once(uses) == 2


def test_what_the_kernel_refused_is_found() -> None:
    assert [note.holder for note in journal.refused_by_kernel(notes("1 open a /d", "2 busy b /d"))] == ["b"]


def line(second: int, message: str, plane: str, *devices: str) -> str:
    """One line of the daemon's log."""
    return json.dumps(
        {
            "time": f"1970-01-01T00:00:{second:02}.000Z",
            "level": "info",
            "message": message,
            "plane": plane,
            "group": "g",
            "devices": devices,
            "holder": "somebody",
        }
    )


def log(*lines: str) -> list[journal.Entry]:
    """A daemon's log."""
    return journal.entries("\n".join(lines))


def test_a_hold_lasts_from_its_first_hand_out_to_its_release() -> None:
    found = journal.ledger_holds(
        log(
            line(1, journal.HANDED_OUT, "device-plugin", "d"),
            line(2, journal.HANDED_OUT, "device-plugin", "d"),
            line(4, journal.ENDED, "device-plugin", "d"),
            line(5, journal.HANDED_OUT, "dra", "d"),
        )
    )
    second = 1_000_000_000
    assert found == [
        journal.LedgerHold("d", "device-plugin", 1 * second, 4 * second),
        journal.LedgerHold("d", "dra", 5 * second, journal.FOREVER),
    ]
    assert journal.conflicts(found) == []
    use = journal.Use("pod", "/d", 0, 0, 2 * second, 3 * second)
    assert journal.covered(use, "d", "device-plugin", found)
    assert not journal.covered(use, "d", "dra", found)


def test_a_device_that_both_planes_have_out_is_a_conflict() -> None:
    found = journal.ledger_holds(
        log(
            line(1, journal.HANDED_OUT, "device-plugin", "d"),
            line(2, journal.HANDED_OUT, "dra", "d"),
            line(3, journal.ENDED, "device-plugin", "d"),
        )
    )
    assert [(a.plane, b.plane) for a, b in journal.conflicts(found)] == [("device-plugin", "dra")]


def test_a_device_named_in_no_hold_is_covered_by_none() -> None:
    use = journal.Use("pod", "/d", 0, 0, 1, 2)
    assert not journal.covered(use, "d", "dra", [])
