"""Recipes that make, quantize, judge and write the models that ship.

Everything is reproducible from a seed: `python -m cloud_bridge.training train NAME --out DIR`. Data is made by
`synth`, features by `features` (the same definitions as on the device), files by `flatbuffer` and `quantize`.
"""
