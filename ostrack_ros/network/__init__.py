"""The OSTrack network in torch, its checkpoints and its export."""
