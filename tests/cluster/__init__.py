"""A real Kubernetes node on one machine, as a Python object and a command line.

What is claimed about a kubelet or a scheduler is shown here. Needs root and Linux; leaves nothing behind.
"""

from tests.cluster.api import Api, ApiError
from tests.cluster.cluster import Cluster
from tests.cluster.images import BUSYBOX, PAUSE, PROBE
from tests.cluster.member import Member
from tests.cluster.node import CommandError, Node
from tests.cluster.processes import Process
from tests.cluster.versions import DEFAULT, RELEASES, Release
from tests.cluster.waiting import NotInTime

__all__ = [
    "BUSYBOX",
    "DEFAULT",
    "PAUSE",
    "PROBE",
    "RELEASES",
    "Api",
    "ApiError",
    "Cluster",
    "CommandError",
    "Member",
    "Node",
    "NotInTime",
    "Process",
    "Release",
]
