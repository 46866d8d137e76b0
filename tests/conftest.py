"""What every test stands on."""

from __future__ import annotations

import signal

# A shell that starts the tests in the background leaves SIGINT ignored; Dagster copies that to SIGTERM, and both are
# inherited by every process that the tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
