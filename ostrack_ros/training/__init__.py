"""Training of OSTrack networks on synthesised and recorded pairs (needs torch)."""
