"""What an inference means: rules with hysteresis, the interest filter, and the sums of routine results.

Pure code: durations come from the monotonic stamps of the samples, times of day from their capture times.
"""
