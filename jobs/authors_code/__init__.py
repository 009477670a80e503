"""What `jobs/compare_authors.py` runs of a checkout of a method's authors, a function per method."""
