"""The Triton backend for GPUs: kernels of window attention and of the residual line, which use maps directly."""
