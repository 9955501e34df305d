"""What holds for all tests."""

import signal

# Shells start what they run in the background with SIGINT ignored, and children inherit that; but some tests interrupt
# programs that they start. A handler of our own is set back to the default by exec.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `nohup` has SIGHUP ignored, and with it whatever is started from there; to the gateway it is a request.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
