"""What `docs/make_site.py` makes the site of."""
