//! The streams and buckets of a cell: made when they are missing, checked when they are there.
