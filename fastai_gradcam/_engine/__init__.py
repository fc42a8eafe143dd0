"""The ground that `gradcam` stands on; it knows torch only."""
