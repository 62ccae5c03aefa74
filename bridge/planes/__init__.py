"""What each plane shows and answers.

`roster` and `projection` are pure: inventory, account and mode in, views and picks out. `device_plugin` and `dra`
are the thin servers over them, `deallocation` finds out when an unprepared claim has let go.
"""
