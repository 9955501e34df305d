"""Keeps Python's collector of cycles from stopping every thread at once for what lives as long as the gateway.

A full collection looks at each container object of the process and holds the interpreter's lock all the while: with the
modules that a gateway imports 20 to 45 ms on a server's core, several times that on a board, and again whenever
something large was parsed, such as the signed list of releases. A camera at 30 frames a second loses a frame then.
What is frozen is not looked at again (`gc.freeze`); what comes later is collected as ever.
"""

import gc


def settle() -> None:
    """Take all that is there now for what stays. Collects once, so that no garbage is kept; takes as long as that."""
    gc.collect()
    gc.freeze()
