"""Why factors from the first step end above dense: rank, start, learning rate, place or the descent in factors."""
