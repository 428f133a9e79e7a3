"""The restoration student: network, losses, data, training, evaluation, restoration (DATPRL-IR, arXiv 2603.01725)."""
