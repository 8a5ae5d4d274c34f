"""What every room stands on: files, digests, statistics, linear algebra, progress. No model, no plot; private."""
