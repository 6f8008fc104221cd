"""The commands of ``isonet-det``: each parses words, calls the package, prints."""
