"""What `gradcam` stands on; knows torch only."""
