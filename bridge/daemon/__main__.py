"""The daemon's program; `bridge run` becomes it. Its one argument is `Settings.dump()`."""

from __future__ import annotations

import asyncio
import logging
import sys

from bridge.config import ConfigErrors, load
from bridge.daemon.logs import set_up
from bridge.daemon.run import StartError, run
from bridge.daemon.settings import Settings

log = logging.getLogger("bridge.daemon")


def main() -> int:
    """Run until SIGTERM; 0 then, 1 if it could not start or broke, 2 for a configuration that is not valid."""
    settings = Settings.parse(sys.argv[1])
    set_up(settings.log_format, settings.log_level)
    try:
        config = load(settings.config)
    except ConfigErrors as errors:
        log.critical("the configuration is not valid", extra={"errors": [str(e) for e in errors.errors]})
        return 2
    try:
        asyncio.run(run(config, settings))
    except StartError as error:
        log.critical("cannot start", extra={"error": str(error)})
        return 1
    except Exception as error:
        log.critical("the daemon broke", extra={"error": str(error)}, exc_info=True)
        return 1
    return 0


sys.exit(main())
