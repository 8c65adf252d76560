"""The tracker inside other people's training loops, one file a framework; each imports its framework."""
