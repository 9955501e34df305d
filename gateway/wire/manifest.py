"""The model manifest: everything a gateway must know to run a release, in one signed document.

A release is a directory (later: a registry entry) with `manifest.json` and the artefacts it names.
"""

from typing import Annotated, Final, Literal

import msgspec

from gateway.wire.errors import MalformedManifestError
from gateway.wire.histogram import Histogram

Target = Literal["cpu-int8", "cpu-int4", "cpu-float", "edgetpu", "tensorrt", "onnx", "head", "tail"]
# In Python, `$` alone would accept a line end after the last character.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
ReleaseName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]
SemanticVersion = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$(?!\n)")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$(?!\n)")]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts of a manifest."""


class Artefact(_Part, frozen=True, kw_only=True):
    """One file of the release, for one kind of accelerator."""

    target: Target
    file: FileName
    sha256: Sha256
    size_bytes: Positive


class ImageInput(_Part, frozen=True, kw_only=True, tag="image", tag_field="kind"):
    """A picture, shape [1, height, width, channels].

    Pixels are 0..255; the model wants `(pixel - mean) / scale`, then quantized as its input tensor says.
    `fit` is how the picture reaches the size: `stretch` ignores the aspect ratio, `letterbox` pads with `pad`.
    """

    height: Positive
    width: Positive
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    interpolation: Literal["linear", "area"] = "linear"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


class LogBands(_Part, frozen=True, kw_only=True, tag="log-bands", tag_field="kind"):
    """Log of the power in bands of a real FFT, per channel: shape [channels * bands].

    The block has its mean removed and a Hann window applied; the bands are spaced logarithmically between
    the two frequencies; the result is `log10(power + floor)`, then `(value - mean) / scale` per feature and
    clipped to +-`clip`. `mean` and `scale` have one entry a feature.
    """

    bands: Positive
    low_hz: float
    high_hz: float
    floor: float = 1e-9
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    clip: float = 6.0


class Standardised(_Part, frozen=True, kw_only=True, tag="standardised", tag_field="kind"):
    """The samples themselves against a slow baseline: shape [samples] for each channel.

    Each channel is `(sample - median) / max(spread, floor)`, with the median and the spread (median absolute
    deviation times 1.4826) of the last `baseline_windows` windows of that channel, clipped to +-`clip`.
    """

    baseline_windows: Positive = 32
    floor: float = 1e-3
    clip: float = 8.0


class LogMel(_Part, frozen=True, kw_only=True, tag="log-mel", tag_field="kind"):
    """Log-mel spectrogram, shape [frames, mels], in decibels (20 log10 of magnitude, or 10 log10 of power).

    With `stack`, that many consecutive frames make one input and the windows slide by one frame, as in the
    MLPerf Tiny anomaly detection reference.
    """

    mels: Positive
    fft_samples: Positive
    hop_samples: Positive
    low_hz: float = 0.0
    high_hz: float | None = None
    power: float = 2.0
    stack: Positive = 1


class Plain(_Part, frozen=True, kw_only=True, tag="plain", tag_field="kind"):
    """The samples as they are, `(sample - mean) / scale` per channel, row by row."""

    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)


Features = LogBands | Standardised | LogMel | Plain


class WindowInput(_Part, frozen=True, kw_only=True, tag="window", tag_field="kind"):
    """A window of sensor samples, (samples, channels), and what is made of it.

    With `per_channel`, each channel is a row of the batch of its own and gets its own answer.
    """

    samples: Positive
    hop_samples: Positive
    channels: Positive = 1
    rate_hz: float
    features: Features
    per_channel: bool = False


class SsdAnchors(_Part, frozen=True, kw_only=True):
    """The usual SSD anchor grid (Liu et al. 2016), as in the TensorFlow object detection API."""

    feature_maps: tuple[int, ...] = (19, 10, 5, 3, 2, 1)
    min_scale: float = 0.2
    max_scale: float = 0.95
    aspect_ratios: tuple[float, ...] = (1.0, 2.0, 0.5, 3.0, 0.3333)
    interpolated_scale_aspect_ratio: float = 1.0
    reduce_boxes_in_lowest_layer: bool = True
    box_coder_scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)


class Classification(_Part, frozen=True, kw_only=True, tag="classification", tag_field="kind"):
    """Scores per label. `activation` is what is still missing after the graph."""

    labels: tuple[str, ...]
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    top: Positive = 3


class Detection(_Part, frozen=True, kw_only=True, tag="detection", tag_field="kind"):
    """Boxes with a label and a score.

    `layout`: `postprocessed` is the four outputs of TFLite_Detection_PostProcess (boxes, classes, scores,
    count); `raw-ssd` is box encodings and class logits, to be decoded with `anchors` and thinned with NMS.
    `labels[i]` names class i (for `raw-ssd` without the background class, which is logit 0); "" is skipped.
    """

    labels: tuple[str, ...]
    layout: Literal["postprocessed", "raw-ssd"] = "postprocessed"
    anchors: SsdAnchors | None = None
    min_score: float = 0.3
    iou: float = 0.5
    max_boxes: Positive = 50


class Reconstruction(_Part, frozen=True, kw_only=True, tag="reconstruction", tag_field="kind"):
    """An autoencoder: the score is the mean squared difference between input and output, in feature units.

    The input compared is the float one, before quantization. A score at `threshold` is an anomaly.
    """

    threshold: float
    label: str = "anomaly"
    error: Literal["mse", "mae", "max"] = "mse"


class Regression(_Part, frozen=True, kw_only=True, tag="score", tag_field="kind"):
    """A model that answers one anomaly score; at `threshold` it is an anomaly."""

    threshold: float
    label: str = "anomaly"


Output = Classification | Detection | Reconstruction | Regression


class Golden(_Part, frozen=True, kw_only=True):
    """An input with its expected output, run before a release sees a live frame.

    `inputs` and `outputs` are files of the release, raw little-endian tensors in the dtype and shape the
    artefact declares, before dequantization; `tolerance` is in steps for integers, absolute for floats.
    """

    target: Target
    input: FileName
    output: FileName
    input_sha256: Sha256
    output_sha256: Sha256
    tolerance: float = 0.0


class Quality(_Part, frozen=True, kw_only=True):
    """One figure on a held-back split, for the float model and for what ships."""

    metric: str
    float_value: float
    shipped_value: float
    split: str


class Lineage(_Part, frozen=True, kw_only=True):
    """Where a release comes from."""

    recipe: str
    data: str
    data_sha256: str = ""
    parent: str | None = None
    licence: str = ""


class Constraints(_Part, frozen=True, kw_only=True):
    """What the release needs of a device, and what it promises there."""

    memory_bytes: int = 0
    max_batch: Positive = 1
    latency_target_ms: float | None = None


class Baseline(_Part, frozen=True, kw_only=True):
    """What the release saw and answered when it was trained; drift is measured against it.

    `inputs` are statistics of the inputs by name, as in `Measure.inputs`; `score` as in `Measure.scores`. `tensor` are
    those of what the model is given after preprocessing, before quantization (`TENSOR_EDGES`).
    """

    score: Histogram | None = None
    inputs: dict[str, Histogram] = {}
    tensor: dict[str, Histogram] = {}
    samples: int = 0


class ModelManifest(_Part, frozen=True, kw_only=True):
    """A release of a model."""

    name: ReleaseName
    version: SemanticVersion
    summary: str = ""
    released_at: str = ""
    deployment_token: int = 0
    artefacts: tuple[Artefact, ...]
    input: ImageInput | WindowInput
    output: Output
    golden: tuple[Golden, ...] = ()
    quality: tuple[Quality, ...] = ()
    constraints: Constraints = Constraints()
    lineage: Lineage | None = None
    baseline: Baseline | None = None

    def artefact(self, target: Target) -> Artefact | None:
        """Return the artefact for a target, or None if the release has none."""
        return next((a for a in self.artefacts if a.target == target), None)


MANIFEST_FILE: Final = "manifest.json"

OVER_THE_AIR_FILE: Final = ".over-the-air"
"""Lies in releases that came to a device over the air: they run where assigned, never because they are newest."""

_decoder: Final = msgspec.json.Decoder(ModelManifest)


def read_manifest(data: bytes) -> ModelManifest:
    """Decode and check a manifest.

    Raises:
        MalformedManifestError: not JSON, not a manifest, or parts that contradict each other.
    """
    try:
        manifest = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedManifestError(f"manifest: {error}") from error
    if not manifest.artefacts:
        raise MalformedManifestError(f"manifest of {manifest.name} {manifest.version}: no artefacts")
    targets = [artefact.target for artefact in manifest.artefacts]
    if len(set(targets)) != len(targets):
        raise MalformedManifestError(f"manifest of {manifest.name} {manifest.version}: two artefacts for one target")
    if isinstance(manifest.output, Detection) and manifest.output.layout == "raw-ssd" and not manifest.output.anchors:
        raise MalformedManifestError(f"manifest of {manifest.name} {manifest.version}: raw-ssd needs anchors")
    return manifest
