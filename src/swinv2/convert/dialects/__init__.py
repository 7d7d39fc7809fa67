"""What each library calls the tensors, and what it cannot compute: tables of data, read both ways."""
