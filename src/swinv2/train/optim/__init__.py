"""Who learns how fast (`groups`), at which step (`schedule`), by Muon too (`muon`), and the average of it (`ema`)."""
