"""Trains small dense networks with scikit-learn and hands over their layers."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from cloud_bridge.training.flatbuffer import Dense

Array = NDArray[np.float32]


def train_restorer(
    inputs: Array, targets: Array, *, hidden: Sequence[int], epochs: int, seed: int, learning_rate: float = 1e-3
) -> list[Dense]:
    """Train a network that maps what is seen to what a healthy source would have shown.

    With `targets` equal to `inputs` it is a plain autoencoder.
    """
    model = MLPRegressor(
        hidden_layer_sizes=tuple(hidden),
        activation="relu",
        solver="adam",
        alpha=1e-5,
        batch_size=128,
        learning_rate_init=learning_rate,
        max_iter=epochs,
        tol=0.0,
        n_iter_no_change=epochs,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is the recipe's
        model.fit(inputs.astype(np.float32), targets.astype(np.float32))
    last = len(model.coefs_) - 1
    return [
        Dense(
            weights=np.ascontiguousarray(weights.T, np.float32),
            biases=np.asarray(biases, np.float32),
            activation="none" if number == last else "relu",
        )
        for number, (weights, biases) in enumerate(zip(model.coefs_, model.intercepts_, strict=True))
    ]


def answer(layers: Sequence[Dense], rows: Array) -> Array:
    """Run the layers in numpy."""
    values = rows
    for layer in layers:
        values = values @ layer.weights.T + layer.biases
        if layer.activation == "relu":
            values = np.maximum(values, 0)
    return values.astype(np.float32)
