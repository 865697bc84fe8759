"""NVIDIA GPUs through NVML, by the unmodified `pynvml` (package nvidia-ml-py)."""
