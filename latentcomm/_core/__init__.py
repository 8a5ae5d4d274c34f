"""What all other packages use: files, digests, statistics, linear algebra, progress. No model, no plot; private."""
