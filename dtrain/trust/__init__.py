"""Who is believed, and what was seen before: the anchor, approved base images, the local state."""
