"""For each library, its names of the tensors and its limits: tables of data, used in both directions."""
