"""What other quantizers make of a network, on given samples: run by ``bench_accuracy`` with a Python that has them.

    python accuracy_peers.py onnxruntime|nncf MODEL.onnx INPUTS.npy SPLITS.npz OUT.npz

INPUTS.npy holds [n, ...] samples; SPLITS.npz arrays ``cal0``, ``score0``, ``cal1``, ... of their numbers. OUT.npz gets
the outputs for the samples that are scored, as ``VARIANT/0`` and so on.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class Reader:
    """Samples as ONNX Runtime's calibration takes them."""

    def __init__(self, name: str, samples: list[np.ndarray]):
        self.name, self.left = name, iter(samples)

    def get_next(self) -> Any:
        """The next call's inputs, None at the end."""
        sample = next(self.left, None)
        return None if sample is None else {self.name: sample}


def onnxruntime(model: str, cal: list[np.ndarray], score: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Its static quantizer: as it comes, and with a scale for each channel."""
    import onnxruntime as ort
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    name = ort.InferenceSession(model, options).get_inputs()[0].name
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        ready, out = str(Path(folder) / "ready.onnx"), str(Path(folder) / "int8.onnx")
        quant_pre_process(model, ready, skip_symbolic_shape=True)
        for variant, per_channel in (("ORT", False), ("ORT per channel", True)):
            quantize_static(
                ready,
                out,
                Reader(name, cal),
                quant_format=QuantFormat.QDQ,
                weight_type=QuantType.QInt8,
                per_channel=per_channel,
            )
            session = ort.InferenceSession(out, options)
            found[variant] = np.concatenate([session.run(None, {name: x})[0] for x in score])
    return found


def nncf(model: str, cal: list[np.ndarray], score: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Its post-training quantization of an OpenVINO model: as it comes, and with the mixed preset."""
    import nncf as n
    import openvino as ov

    found = {}
    for variant, more in (("NNCF", {}), ("NNCF mixed", {"preset": n.QuantizationPreset.MIXED})):
        made = n.quantize(ov.convert_model(model), n.Dataset(cal), subset_size=len(cal), **more)
        run = ov.compile_model(made, "CPU", {"INFERENCE_NUM_THREADS": 2})
        found[variant] = np.concatenate([run(x)[0].copy() for x in score])
    return found


def main() -> None:
    """Quantizes and runs each split."""
    kind, model, inputs, splits, out = sys.argv[1:]
    every = np.load(inputs, mmap_mode="r")
    found = {}
    with np.load(splits) as held:
        for i in range(len(held.files) // 2):
            cal, score = ([np.ascontiguousarray(every[k][None]) for k in held[f"{w}{i}"]] for w in ("cal", "score"))
            made = (onnxruntime if kind == "onnxruntime" else nncf)(model, cal, score)
            found |= {f"{variant}/{i}": array for variant, array in made.items()}
            np.savez(out, **found)


if __name__ == "__main__":
    main()
