"""What is said of photos: attributes, classes, splits, captions; by tables, folders, or the source itself."""
