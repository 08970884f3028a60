"""Images, labels, groups and splits, independent of the data set."""
