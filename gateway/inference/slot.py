"""Holds the model of a pipeline, and lets another take its place between two samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from gateway.errors import InferenceError
from gateway.inference.model import Model


class ModelSlot:
    """The current model. The inference thread uses it, any thread may swap it.

    A sample is always answered by one model from beginning to end. After a swap the old model serves the sample it is
    at, then it is closed; at no time is there no model.
    """

    def __init__(self, model: Model) -> None:
        self._condition = Condition()
        self._current = model
        self._users: dict[int, int] = {}  # by id of the model
        self._retired: dict[int, Model] = {}
        self._closed = False

    @property
    def current(self) -> Model:
        """The model the next sample gets."""
        return self._current

    @contextmanager
    def using(self) -> Iterator[Model]:
        """Hold the current model while it looks at one sample.

        Raises:
            InferenceError: the slot is closed.
        """
        with self._condition:
            if self._closed:
                raise InferenceError("the model slot is closed: the pipeline is stopping")
            model = self._current
            self._users[id(model)] = self._users.get(id(model), 0) + 1
        try:
            yield model
        finally:
            with self._condition:
                left = self._users.pop(id(model)) - 1
                if left:
                    self._users[id(model)] = left
                done = None if left else self._retired.pop(id(model), None)
                self._condition.notify_all()
            if done is not None:
                done.close()

    def swap(self, model: Model) -> Model:
        """Let a loaded model serve from the next sample on; return the old one, closed as soon as it is not in use.

        Raises:
            InferenceError: the slot is closed; the new model was not taken and is the caller's to close.
        """
        with self._condition:
            old = self._take(model)
            idle = old is not model and not self._retire(old)
        if idle:
            old.close()
        return old

    def exchange(self, model: Model) -> Model:
        """Like `swap`, but the old model stays open: it is the caller's, who may use or close it once it is `drained`.

        Raises:
            InferenceError: the slot is closed; the new model was not taken and is the caller's to close.
        """
        with self._condition:
            return self._take(model)

    def drained(self, model: Model, timeout_seconds: float) -> bool:
        """Wait until a swapped-out model serves no sample any more; False after the time-out."""
        with self._condition:
            return self._condition.wait_for(lambda: id(model) not in self._users, timeout_seconds)

    def close(self) -> None:
        """Take no more samples; the model is closed when it is not in use."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            idle = not self._retire(self._current)
        if idle:
            self._current.close()

    def _take(self, model: Model) -> Model:
        if self._closed:
            raise InferenceError("the model slot is closed: the pipeline is stopping")
        old, self._current = self._current, model
        return old

    def _retire(self, model: Model) -> bool:
        """Note that a model is to be closed after its sample. False if it is idle and can be closed now."""
        if id(model) not in self._users:
            return False
        self._retired[id(model)] = model
        return True
