"""Where captures come from: cameras, sensors, leaf devices on the local broker, the machine itself, recordings.

A source blocks on its device and yields what it gives; `capture.CaptureThread` gives it a thread, opens it again when
it is lost, and hands on only what is fresh.
"""
