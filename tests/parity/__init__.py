"""One model, everywhere the same: torch, ONNX Runtime, Triton; training, replay, live."""
