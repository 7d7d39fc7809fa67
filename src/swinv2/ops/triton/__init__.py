"""The fused backend of cosine window attention, for GPUs: kernels in Triton that read and write the map itself."""
