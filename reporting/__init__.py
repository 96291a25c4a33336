"""The report of a folder of results: reading (read), tables and tests (tables), figures (figures), the page (page)."""
