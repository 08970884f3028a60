"""Images, labels, groups and splits, whatever data set they are of."""
