"""The page: a few HTTP routes over the domain, and the files that a browser shows it with."""
