"""The command line: one file per command in ``commands``, thin over ``frontends`` and ``runtime``."""
