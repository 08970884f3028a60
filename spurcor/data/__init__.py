"""Images, labels, groups and splits of any data set."""
