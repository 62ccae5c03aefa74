"""Configurations of other device plugins as configurations of the bridge. Pure: text in, configuration and notes out.

Every field is taken up, or a note says what became of it; nothing is dropped in silence. What a plugin is known to do
wrong is not kept, and a note says that too.
"""

from bridge.config_import.power import Imported, Options, power_device_plugin
from bridge.config_import.written import written

__all__ = ["Imported", "Options", "power_device_plugin", "written"]
