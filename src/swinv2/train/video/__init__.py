"""Classifiers of videos on the trainer of `swinv2.train.finetune`."""
