"""The page: what is asked of it, what it shows, and how that is drawn. Nothing of a browser stays in the server."""
