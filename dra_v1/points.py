"""Every place where state is written or an answer leaves, by name; and a hook there that does nothing.

Tests put something in the hook's place that ends the process, start it again and look at what is left. A write or a
send that names no point fails `make lint` (tests/lint/points.py), and so does a point that is named nowhere.
Kept here, in the lowest layer, because all three packages name points.
"""

from __future__ import annotations

from enum import StrEnum, auto


class Point(StrEnum):
    """A place at which the process may die: before a step (`…ING`, or `…ANSWER`) or after it (`…ED`)."""

    # bridge.ledger
    LEDGER_FOLDER_MAKING = auto()
    LEDGER_MAKING = auto()
    LEDGER_MADE_ASIDE = auto()
    LEDGER_IN_PLACE = auto()
    LEDGER_SETTING_ASIDE = auto()
    LEDGER_SET_ASIDE = auto()
    LEDGER_SIGNING = auto()
    LEDGER_SIGNED = auto()
    LEDGER_MIGRATING = auto()
    LEDGER_MIGRATED = auto()
    LEDGER_ROOM_MAKING = auto()
    LEDGER_ROOM_MADE = auto()
    LEDGER_BOOT_NOTING = auto()
    LEDGER_BOOT_NOTED = auto()
    LEDGER_BEGINNING = auto()
    LEDGER_COMMITTING = auto()
    LEDGER_COMMITTED = auto()

    # bridge.daemon
    NAMES_WRITING = auto()
    NAMES_OPENED_ASIDE = auto()
    NAMES_WRITTEN_ASIDE = auto()
    NAMES_IN_PLACE = auto()
    NODE_BRIDGE_MAKING = auto()
    NODE_BRIDGE_MADE = auto()
    NODE_BRIDGE_APPLYING = auto()
    NODE_BRIDGE_APPLIED = auto()
    MODE_STEPPING = auto()
    MODE_STEPPED = auto()

    # bridge.platform
    CDI_WRITING = auto()
    CDI_OPENED_ASIDE = auto()
    CDI_WRITTEN_ASIDE = auto()
    CDI_IN_PLACE = auto()
    CDI_REMOVING = auto()
    CDI_REMOVED = auto()
    EVENT_POSTING = auto()
    EVENT_POSTED = auto()

    # The control socket
    CONTROL_BINDING = auto()
    CONTROL_ANSWER = auto()
    CONTROL_ANSWERED = auto()
    CONTROL_REMOVING = auto()
    CONTROL_REMOVED = auto()

    # Unix sockets of both libraries, and registration
    SOCKET_FOLDER_MAKING = auto()
    SOCKET_BINDING = auto()
    SOCKET_BOUND_ASIDE = auto()
    SOCKET_IN_PLACE = auto()
    SOCKET_REMOVING = auto()
    SOCKET_REMOVED = auto()
    INFO_ANSWER = auto()
    NOTIFY_ANSWER = auto()
    REGISTER_CALLING = auto()
    REGISTER_CALLED = auto()

    # The device plugin API
    OPTIONS_ANSWER = auto()
    LIST_SENDING = auto()
    LIST_SENT = auto()
    PREFERRED_ANSWER = auto()
    ALLOCATE_ANSWER = auto()
    ALLOCATE_REFUSAL = auto()
    PRE_START_ANSWER = auto()

    # The DRA plugin API
    PREPARE_ANSWER_V1 = auto()
    PREPARE_ANSWER_V1BETA1 = auto()
    UNPREPARE_ANSWER_V1 = auto()
    UNPREPARE_ANSWER_V1BETA1 = auto()
    HEALTH_SENDING_V1 = auto()
    HEALTH_SENT_V1 = auto()
    HEALTH_SENDING_V1ALPHA1 = auto()
    HEALTH_SENT_V1ALPHA1 = auto()

    # ResourceSlices
    SLICE_CREATING = auto()
    SLICE_CREATED = auto()
    SLICE_UPDATING = auto()
    SLICE_UPDATED = auto()
    SLICE_DELETING = auto()
    SLICE_DELETED = auto()

    # The status of ResourceClaims
    CLAIM_STATUS_APPLYING = auto()
    CLAIM_STATUS_APPLIED = auto()


def reached(point: Point) -> None:
    """Nothing, at `point`. Callers look it up in this module each time, so that a test can replace it."""
