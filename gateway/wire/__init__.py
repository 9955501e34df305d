"""What the device and the cloud agree on: topics, messages, and the model manifest.

Pure code: nothing here does I/O, and nothing but msgspec is imported beyond the standard library.
"""
