"""Which ranks a training needs by its loss, and which rules on the spectrum come near."""
