"""From captures to model inputs: resize, normalise, quantize, windows, spectra. Pure: no I/O, no threads, no clock."""
