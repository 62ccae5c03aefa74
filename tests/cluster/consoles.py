"""Gives back the virtual consoles that tests have opened.

Character devices 4:10 to 4:63 serve as ordinary test devices: a container may open them only where it was
allowed to. The kernel keeps what it made for a console that was opened once, visible as `/dev/vcsN`.
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path

MAJOR = 4
FIRST, LAST = 10, 63
_DISALLOCATE = 0x5608  # VT_DISALLOCATE


def release() -> None:
    """Give back every console of the range that nobody has open; one that is in use is refused by the kernel."""
    used = [n for n in range(FIRST, LAST + 1) if Path(f"/sys/class/vc/vcs{n}").exists()]
    if used:
        with suppress(FileNotFoundError), Path("/dev/tty0").open("rb", buffering=0) as terminal:
            for number in used:
                with suppress(OSError):
                    fcntl.ioctl(terminal, _DISALLOCATE, number)
