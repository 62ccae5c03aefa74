"""Which stories visit which point. A point without a visit on each plane where it lies fails the tests."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.ledger.holds import Plane
from dra_v1.points import Point
from tests.crash import stories as tell
from tests.crash.scene import ACC, LEGACY, NX, SAME_NAME
from tests.crash.stories import Story

DP, DRA = frozenset({Plane.DEVICE_PLUGIN}), frozenset({Plane.DRA})
BOTH = DP | DRA

POD_STARTS, POD_ENDS = Story(tell.pod_starts), Story(tell.pod_ends)
POD_REFUSED, PRE_START = Story(tell.pod_is_refused), Story(tell.container_is_prepared)
CLAIM_STARTS, CLAIM_ENDS = Story(tell.claim_starts), Story(tell.claim_ends)
CLAIM_REFUSED = Story(tell.claim_is_refused)
TUNED_STARTS = Story(tell.configured_claim_starts, (ACC, NX))
TUNED_ENDS = Story(tell.configured_claim_ends, (ACC, NX))
OLD_STARTS, OLD_ENDS = Story(tell.claim_starts, profile="1.32"), Story(tell.claim_ends, profile="1.32")
OLD_HEALTH = Story(tell.health_is_watched, profile="1.34")
FIRST, FIRST_LEGACY = Story(tell.first_start), Story(tell.first_start, (LEGACY,))
RESTART, RESTART_TUNED = Story(tell.starts_with_holds), Story(tell.starts_with_holds, (ACC, NX))
LEFTOVERS = Story(tell.starts_with_leftovers)
REGROUPED = Story(tell.starts_with_another_group, (ACC, NX))
OLD_LEDGER = Story(tell.starts_with_an_old_ledger)
DAMAGED, LOST = Story(tell.starts_with_a_damaged_ledger), Story(tell.starts_with_a_lost_ledger)
LOOKED_AT, RELEASED = Story(tell.operator_looks), Story(tell.operator_releases)
TO_DRA, BACK = Story(tell.goes_to_dra, (SAME_NAME,)), Story(tell.comes_back_from_dra, (SAME_NAME,))
ALL_THE_WAY = Story(tell.goes_all_the_way_to_dra, (SAME_NAME,))
STOPS, UNPLUG, STRAY = Story(tell.stops), Story(tell.device_goes_and_comes), Story(tell.slice_is_left_over)

PLANES = {
    **dict.fromkeys((POD_STARTS, POD_ENDS, POD_REFUSED, PRE_START, FIRST_LEGACY, RELEASED), DP),
    **dict.fromkeys(
        (
            CLAIM_STARTS,
            CLAIM_ENDS,
            CLAIM_REFUSED,
            TUNED_STARTS,
            TUNED_ENDS,
            OLD_STARTS,
            OLD_ENDS,
            OLD_HEALTH,
            STRAY,
        ),
        DRA,
    ),
    **dict.fromkeys((FIRST, RESTART, RESTART_TUNED, LEFTOVERS, REGROUPED, OLD_LEDGER, DAMAGED, LOST), BOTH),
    **dict.fromkeys((STOPS, UNPLUG, LOOKED_AT), BOTH),
    **dict.fromkeys((TO_DRA, ALL_THE_WAY, BACK), BOTH),
}
"""The planes whose work a story is, or on which something is held meanwhile."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A death: at a point, in a story, when it is reached for so many times."""

    point: Point
    story: Story
    times: int = 1

    def __str__(self) -> str:
        return f"{self.point.name}-{self.story}" + (f"-{self.times}" if self.times > 1 else "")


def _visits(points: str, *stories: Story | tuple[Story, int]) -> list[Visit]:
    told = [story if isinstance(story, tuple) else (story, 1) for story in stories]
    return [Visit(Point[name], story, times) for name in points.split() for story, times in told]


VISITS = [
    # The ledger: its file, and each sort of transaction. A pod's second commit names it, a claim's first one reserves
    # and its second one prepares, and the second one of its end is the deallocation.
    *_visits("LEDGER_FOLDER_MAKING LEDGER_SIGNED", RESTART),
    *_visits("LEDGER_MADE_ASIDE LEDGER_IN_PLACE", FIRST, DAMAGED),
    *_visits("LEDGER_MAKING LEDGER_SIGNING", DAMAGED),
    *_visits("LEDGER_SETTING_ASIDE", DAMAGED, (LOST, 2)),
    *_visits("LEDGER_SET_ASIDE", DAMAGED, LOST),
    *_visits("LEDGER_MIGRATING LEDGER_MIGRATED", DAMAGED, OLD_LEDGER),
    *_visits("LEDGER_ROOM_MAKING LEDGER_ROOM_MADE LEDGER_BOOT_NOTING LEDGER_BOOT_NOTED", RESTART),
    *_visits("LEDGER_BEGINNING", POD_STARTS, CLAIM_STARTS),
    *_visits(
        "LEDGER_COMMITTING",
        *(POD_STARTS, POD_ENDS, CLAIM_STARTS, (CLAIM_STARTS, 2), TUNED_STARTS),
        *(CLAIM_ENDS, (CLAIM_ENDS, 2), DAMAGED),
    ),
    *_visits(
        "LEDGER_COMMITTED",
        *(POD_STARTS, (POD_STARTS, 2), POD_ENDS, CLAIM_STARTS, (CLAIM_STARTS, 2), (TUNED_STARTS, 2)),
        *(CLAIM_ENDS, (CLAIM_ENDS, 2), DAMAGED),
    ),
    *_visits("NAMES_WRITING NAMES_OPENED_ASIDE NAMES_WRITTEN_ASIDE NAMES_IN_PLACE", REGROUPED),
    *_visits("NAMES_WRITTEN_ASIDE", FIRST),
    # Modes: each step of each way, before and after it is on disk.
    *_visits("MODE_STEPPING MODE_STEPPED", TO_DRA, (TO_DRA, 2), (TO_DRA, 3)),
    *_visits("MODE_STEPPING MODE_STEPPED", *((ALL_THE_WAY, n) for n in range(1, 5))),
    *_visits("MODE_STEPPING MODE_STEPPED", *((BACK, n) for n in range(1, 4))),
    # CDI: the groups' files at the start and at an unplug, a claim's own file when it starts, ends, and is restored.
    *_visits("CDI_WRITING CDI_OPENED_ASIDE CDI_WRITTEN_ASIDE CDI_IN_PLACE", UNPLUG, TUNED_STARTS),
    *_visits("CDI_WRITTEN_ASIDE", FIRST, RESTART_TUNED),
    *_visits("CDI_REMOVING CDI_REMOVED", LEFTOVERS, TUNED_ENDS),
    # Sockets: of each plane the endpoint and the registration.
    *_visits("SOCKET_FOLDER_MAKING", FIRST, (FIRST, 3)),
    *_visits("SOCKET_BINDING", FIRST, (FIRST, 4)),
    *_visits("SOCKET_BOUND_ASIDE", FIRST, (FIRST, 2), (FIRST, 3), (FIRST, 4), (FIRST, 5), RESTART),
    *_visits("SOCKET_IN_PLACE", FIRST, (FIRST, 4)),
    *_visits("SOCKET_REMOVING", STOPS, (STOPS, 4)),
    *_visits("SOCKET_REMOVED", (STOPS, 2), (STOPS, 3)),
    *_visits("INFO_ANSWER NOTIFY_ANSWER", (FIRST, 2), RESTART),
    *_visits("REGISTER_CALLING REGISTER_CALLED", FIRST_LEGACY),
    # Answers
    *_visits("OPTIONS_ANSWER", RESTART),
    *_visits("LIST_SENDING LIST_SENT", CLAIM_STARTS, UNPLUG, RESTART),
    *_visits("PREFERRED_ANSWER ALLOCATE_ANSWER", POD_STARTS),
    *_visits("ALLOCATE_REFUSAL", POD_REFUSED),
    *_visits("PRE_START_ANSWER", PRE_START),
    *_visits("PREPARE_ANSWER_V1", CLAIM_STARTS, TUNED_STARTS),
    *_visits("PREPARE_ANSWER_V1BETA1", OLD_STARTS),
    *_visits("UNPREPARE_ANSWER_V1", CLAIM_ENDS, TUNED_ENDS),
    *_visits("UNPREPARE_ANSWER_V1BETA1", OLD_ENDS),
    *_visits("HEALTH_SENDING_V1 HEALTH_SENT_V1", UNPLUG),
    *_visits("HEALTH_SENDING_V1ALPHA1 HEALTH_SENT_V1ALPHA1", OLD_HEALTH),
    # Events
    *_visits("EVENT_POSTING EVENT_POSTED", POD_REFUSED, CLAIM_REFUSED),
    # The control socket
    *_visits("CONTROL_BINDING", RESTART),
    *_visits("CONTROL_ANSWER CONTROL_ANSWERED", LOOKED_AT),
    *_visits("LEDGER_COMMITTING LEDGER_COMMITTED CONTROL_ANSWER", RELEASED),
    *_visits("CONTROL_REMOVING CONTROL_REMOVED", STOPS),
    # Claims and slices
    *_visits("CLAIM_STATUS_APPLYING CLAIM_STATUS_APPLIED", CLAIM_STARTS, CLAIM_REFUSED),
    *_visits("SLICE_CREATING SLICE_CREATED", FIRST),
    *_visits("SLICE_UPDATING SLICE_UPDATED", POD_STARTS, POD_ENDS, UNPLUG),
    *_visits("SLICE_DELETING SLICE_DELETED", STRAY),
    # How the node stands: at the first start, and when a device is handed out.
    *_visits("NODE_BRIDGE_MAKING NODE_BRIDGE_MADE", FIRST),
    *_visits("NODE_BRIDGE_APPLYING NODE_BRIDGE_APPLIED", FIRST, POD_STARTS, CLAIM_ENDS),
]

_OF_DEVICE_PLUGINS = ("REGISTER", "OPTIONS", "PREFERRED", "ALLOCATE", "PRE_")
_OF_DRA = ("PREPARE", "UNPREPARE", "HEALTH", "SLICE_DELET", "CLAIM_STATUS")
ON_ONE_PLANE = {
    **dict.fromkeys(
        (p for p in Point if p.name.startswith(("REGISTER", "OPTIONS", "PREFERRED", "ALLOCATE", "PRE_"))), DP
    ),
    **dict.fromkeys(
        (
            p
            for p in Point
            if p.name.startswith(("PREPARE", "UNPREPARE", "HEALTH", "SLICE_DELET", "CLAIM_STATUS"))
        ),
        DRA,
    ),
}
"""Points of one plane's own calls; all others have to be visited on both."""
