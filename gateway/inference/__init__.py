"""Models: releases on disk, the runtimes that run them, and what their answers mean.

The only package that imports an inference runtime. It does not know how samples are prepared: the composition root
hands it `gateway.preprocess.preparation.preparation_for`.
"""
